// Tensors to time ops with.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "runtime/memory.h"

namespace notellm {

// Each tensor has memory of its own on the device, made on the host and copied there, until clear().
class Operands {
 public:
  explicit Operands(Device device) : device_(device) {}

  // Numbers between −0.5 and 0.5, not zeros, with which some processors are faster than with a model's numbers.
  Tensor random(DType dtype, std::initializer_list<int64_t> sizes);  // f32 | bf16
  Tensor zeros(DType dtype, std::initializer_list<int64_t> sizes);
  Tensor copy_of(std::span<const int32_t> values);
  // Nothing that reads or writes them may still be enqueued.
  void clear() { buffers_.clear(); }

 private:
  Tensor take(Buffer host, Tensor shape);
  Device device_;
  std::vector<Buffer> buffers_;
};

}  // namespace notellm

// Buffer owns memory; Arena hands out tensors from one Buffer.
#pragma once

#include <cstddef>
#include <utility>

#include "runtime/tensor.h"

namespace notellm {

// Memory from the kernel's page allocator: 64-byte aligned, zero, in huge pages where the system has them, resident
// only once touched. Move-only.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // A tensor over the whole buffer's beginning. Throws Error when it does not fit.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> sizes) const;

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A stack of tensors in one buffer: the step's activations and workspace. Allocation is a pointer increment; memory is
// given back by rewinding to a mark. Contents are not cleared.
class Arena {
 public:
  explicit Arena(int64_t capacity_bytes) : buffer_(capacity_bytes) {}

  // 64-byte aligned. Throws Error (what is asked, what is held, what to lower) when the arena is full.
  Tensor allocate(DType dtype, std::initializer_list<int64_t> sizes);
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }
  int64_t used_bytes() const { return used_; }
  int64_t peak_bytes() const { return peak_; }

 private:
  Buffer buffer_;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace notellm

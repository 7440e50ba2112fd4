// Buffer owns memory; Arena hands out tensors from one Buffer.
#pragma once

#include <cstddef>
#include <utility>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// host: from the kernel's page allocator, 64-byte aligned, zero, in huge pages where the system has them, resident only
// once touched. pinned: host memory that a GPU copies from and to while the host goes on; 256-byte aligned, not
// cleared. device: the GPU's, 256-byte aligned, not cleared. Without a GPU everything is host memory (memory_of).
enum class Memory : uint8_t { host, pinned, device };
constexpr Memory memory_of(Device device) { return device == Device::cpu ? Memory::host : Memory::device; }

// Move-only.
class Buffer {
 public:
  Buffer() = default;
  // `what` names device memory where it runs out. Throws Error(internal): not enough host memory; Error(device): not
  // enough on the GPU, with what holds it and what to lower.
  explicit Buffer(int64_t bytes, Memory memory = Memory::host, const char* what = "buffers");
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Memory memory() const { return memory_; }
  // A tensor over the whole buffer's beginning. Throws Error when it does not fit.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> sizes) const;

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(memory_, other.memory_);
  }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Memory memory_ = Memory::host;
};

// In the order of the stream, from any memory to any: the same dtype and number of elements. On a CUDA stream a copy
// from or to pinned memory goes on while the host does; the host leaves that memory alone until the stream has passed.
void copy(Stream& stream, Tensor from, Tensor to);
void set_zero(Stream& stream, Tensor t);

// `host` as memory of the device: itself on the CPU, else a copy, which has ended.
Buffer on_device(Device device, Buffer host);

// A stack of tensors in one buffer: the step's activations and workspace. Allocation is a pointer increment; memory is
// given back by rewinding to a mark. Contents are not cleared.
class Arena {
 public:
  explicit Arena(int64_t capacity_bytes, Memory memory = Memory::host)
      : buffer_(capacity_bytes, memory, "activations and workspace") {}

  // 64-byte aligned. Throws Error (what is asked, what is held, what to lower) when the arena is full.
  Tensor allocate(DType dtype, std::initializer_list<int64_t> sizes);
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }
  int64_t used_bytes() const { return used_; }
  int64_t peak_bytes() const { return peak_; }
  int64_t capacity_bytes() const { return buffer_.bytes(); }
  Device device() const { return buffer_.memory() == Memory::device ? Device::cuda : Device::cpu; }

 private:
  Buffer buffer_;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace notellm

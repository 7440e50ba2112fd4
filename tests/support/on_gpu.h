// Vectors in device memory and back, so that a test of CUDA reads like the CPU's.
#pragma once

#include <initializer_list>
#include <vector>

#include "runtime/memory.h"

namespace notellm::test {

// A vector's copy in device memory.
template <class T>
class OnGpu {
 public:
  OnGpu(Stream& stream, const std::vector<T>& from)
      : stream_(&stream), size_(static_cast<int64_t>(from.size())), buffer_(bytes(), Memory::device) {
    if (size_ > 0) copy(stream, Tensor::of(from.data(), {size_}), tensor({size_}));
    stream.synchronize();
  }
  Tensor tensor(std::initializer_list<int64_t> sizes) const { return Tensor(buffer_.data(), DTypeOf<T>::value, sizes); }
  std::vector<T> download() const {
    std::vector<T> result(static_cast<size_t>(size_));
    if (size_ > 0) copy(*stream_, tensor({size_}), Tensor::of(result.data(), {size_}));
    stream_->synchronize();
    return result;
  }

 private:
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)) + 16; }  // never 0
  Stream* stream_;
  int64_t size_;
  Buffer buffer_;
};

}  // namespace notellm::test

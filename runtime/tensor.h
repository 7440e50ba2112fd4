// Tensor: a view of contiguous, row-major memory; trivially copyable, owns nothing.
#pragma once

#include <array>
#include <initializer_list>
#include <span>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace notellm {

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int dims = 0;                       // number of dimensions in use
  std::array<int64_t, 3> shape = {};  // [rows, cols] in nearly all places

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> sizes) : data(data), dtype(dtype) {
    NOTELLM_CHECK(sizes.size() <= shape.size(), "tensor of {} dimensions", sizes.size());
    for (int64_t size : sizes) shape[dims++] = size;
  }
  template <class T>
  static Tensor of(T* data, std::initializer_list<int64_t> sizes) {
    return Tensor(const_cast<std::remove_const_t<T>*>(data), DTypeOf<std::remove_const_t<T>>::value, sizes);
  }

  int64_t rows() const { return shape[0]; }
  // Elements of one row: all dimensions but the first.
  int64_t cols() const { return dims == 1 ? 1 : dims == 2 ? shape[1] : shape[1] * shape[2]; }
  int64_t size() const { return dims == 0 ? 0 : rows() * cols(); }
  int64_t bytes() const { return size() * size_of(dtype); }
  bool empty() const { return data == nullptr; }

  // The elements as T. Throws Error when T is not this tensor's dtype.
  template <class T>
  T* as() const {
    NOTELLM_CHECK(DTypeOf<T>::value == dtype, "tensor holds {}, not {}", name_of(dtype), name_of(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }
  template <class T>
  std::span<T> span() const {
    return {as<T>(), static_cast<size_t>(size())};
  }

  // Rows [begin, end).
  Tensor slice(int64_t begin, int64_t end) const {
    NOTELLM_CHECK(0 <= begin && begin <= end && end <= rows(), "rows {}..{} of {}", begin, end, rows());
    Tensor part = *this;
    part.data = static_cast<char*>(data) + begin * cols() * size_of(dtype);
    part.shape[0] = end - begin;
    return part;
  }
  // The same elements in another shape.
  Tensor reshape(std::initializer_list<int64_t> sizes) const {
    Tensor other(data, dtype, sizes);
    NOTELLM_CHECK(other.size() == size(), "reshape of {} elements to {}", size(), other.size());
    return other;
  }
};

// "f32 [4, 192]", for messages.
inline std::string describe(const Tensor& t) {
  std::string text = std::string(name_of(t.dtype)) + " [";
  for (int i = 0; i < t.dims; ++i) text += (i ? ", " : "") + std::to_string(t.shape[i]);
  return text + "]";
}

}  // namespace notellm

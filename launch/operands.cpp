#include "launch/operands.h"

#include <cstring>

#include "runtime/random.h"

namespace notellm {
namespace {

constexpr int64_t alignment = 64;  // never 0 bytes, and whole elements of any type

Buffer host_memory(const Tensor& shape) { return Buffer((shape.bytes() / alignment + 1) * alignment); }

template <class T>
void fill(Tensor t) {
  T* to = t.as<T>();
#pragma omp parallel for
  for (int64_t i = 0; i < t.size(); ++i) to[i] = T(static_cast<float>(random_unit(1, i, 0) - 0.5));
}

}  // namespace

Tensor Operands::take(Buffer host, Tensor shape) {
  buffers_.push_back(on_device(device_, std::move(host)));
  shape.data = buffers_.back().data();
  return shape;
}

Tensor Operands::random(DType dtype, std::initializer_list<int64_t> sizes) {
  Tensor t(nullptr, dtype, sizes);
  Buffer host = host_memory(t);
  t.data = host.data();
  if (dtype == DType::bf16)
    fill<bf16>(t);
  else
    fill<float>(t);
  return take(std::move(host), t);
}

Tensor Operands::zeros(DType dtype, std::initializer_list<int64_t> sizes) {
  const Tensor t(nullptr, dtype, sizes);
  return take(host_memory(t), t);
}

Tensor Operands::copy_of(std::span<const int32_t> values) {
  const Tensor t(nullptr, DType::i32, {std::ssize(values)});
  Buffer host = host_memory(t);
  std::memcpy(host.data(), values.data(), values.size_bytes());
  return take(std::move(host), t);
}

}  // namespace notellm

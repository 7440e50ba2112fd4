#include "runtime/ordered_sum.h"

#include <algorithm>

#include "runtime/error.h"

namespace notellm {
namespace {

template <class T, class Stored = T>
void sum_in_order(std::span<const char* const> parts, int64_t n, char* out) {
  constexpr int64_t tile = 1024;
  T sum[tile];
  for (int64_t begin = 0; begin < n; begin += tile) {
    const int64_t count = std::min(tile, n - begin);
    const Stored* first = reinterpret_cast<const Stored*>(parts[0]) + begin;
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<T>(first[i]);
    for (size_t p = 1; p < parts.size(); ++p) {
      const Stored* part = reinterpret_cast<const Stored*>(parts[p]) + begin;
      for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<T>(part[i]);
    }
    Stored* const to = reinterpret_cast<Stored*>(out) + begin;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Stored>(sum[i]);
  }
}

}  // namespace

void sum_in_order(DType dtype, std::span<const char* const> parts, int64_t n, char* out) {
  switch (dtype) {
    case DType::f32:
      return sum_in_order<float>(parts, n, out);
    case DType::f64:
      return sum_in_order<double>(parts, n, out);
    case DType::i32:
      return sum_in_order<uint32_t>(parts, n, out);  // unsigned: wraps without undefined behaviour
    case DType::i64:
      return sum_in_order<uint64_t>(parts, n, out);
    case DType::bf16:
      return sum_in_order<float, bf16>(parts, n, out);
    case DType::f16:
    case DType::bf16_panels:
    case DType::bf16_gated_panels:
      break;
  }
  NOTELLM_CHECK(false, "no sum of {}", name_of(dtype));
}

}  // namespace notellm

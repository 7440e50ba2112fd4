// What the ops share: the check of an argument, the choice of element type, and when work is worth a second thread.
#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace notellm {

// Throws Error unless t has this dtype and rows × cols elements (a [tokens, heads, head_dim] tensor passes for
// [tokens, heads·head_dim]).
inline void expect(const char* name, const Tensor& t, DType dtype, int64_t rows, int64_t cols = 1) {
  NOTELLM_CHECK(t.dtype == dtype && t.dims > 0 && t.rows() == rows && t.cols() == cols,
                "{} is {}, but {} [{}, {}] is needed", name, describe(t), name_of(dtype), rows, cols);
}

// Calls f with a value of t's element type, float or bf16. Throws Error for another type.
template <class F>
void with_float_type(const char* name, const Tensor& t, F&& f) {
  NOTELLM_CHECK(t.dtype == DType::f32 || t.dtype == DType::bf16, "{} is {}, but f32 or bf16 is needed", name,
                describe(t));
  if (t.dtype == DType::f32)
    f(float{});
  else
    f(bf16{});
}

// Elementwise work on fewer elements than this (some µs) ends sooner on one thread than a second one starts.
constexpr int64_t parallel_elements = 1 << 15;

}  // namespace notellm

#include "kernels/cross_entropy.h"

#include <cmath>
#include <type_traits>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

// sum_of_exp that keeps the terms, for a gradient in f32, which then needs no second exp.
float store_exp(const float* x, float shift, int64_t n, float* terms) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += terms[i] = exp_or_zero(x[i] - shift);
  return sum;
}

// One row. `in_use` of `cols` columns take part.
template <class T>
float row_loss(const float* logits, int32_t label, int64_t in_use, int64_t cols, float scale, T* dlogits) {
  const float best = max_of(logits, in_use), of_label = logits[label];
  float sum;
  if constexpr (std::is_same_v<T, float>)
    sum = store_exp(logits, best, in_use, dlogits);
  else
    sum = sum_of_exp(logits, best, in_use);
  const float factor = scale / sum;
  if constexpr (std::is_same_v<T, float>) {
#pragma omp simd
    for (int64_t i = 0; i < in_use; ++i) dlogits[i] *= factor;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < in_use; ++i) dlogits[i] = rounded<T>(exp_or_zero(logits[i] - best) * factor);
  }
  dlogits[label] = rounded<T>(exp_or_zero(of_label - best) * factor - scale);
  for (int64_t i = in_use; i < cols; ++i) dlogits[i] = rounded<T>(0.0f);
  return std::log(sum) + (best - of_label);
}

}  // namespace

void cross_entropy(Stream& stream, Tensor logits, Tensor labels, int64_t vocabulary_in_use, float scale, Tensor loss,
                   Tensor dlogits) {
  const int64_t rows = logits.rows(), cols = logits.cols(), in_use = vocabulary_in_use;
  expect("logits", logits, DType::f32, rows, cols);
  expect("labels", labels, DType::i32, rows);
  expect("loss", loss, DType::f32, rows);
  NOTELLM_CHECK(0 <= in_use && in_use <= cols, "{} of {} columns in use", in_use, cols);
  if (!dlogits.empty()) expect("dlogits", dlogits, dlogits.dtype, rows, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::cross_entropy(stream, logits, labels, in_use, scale, loss, dlogits);
  const int32_t* label = labels.as<int32_t>();
  for (int64_t r = 0; r < rows; ++r)
    NOTELLM_CHECK(label[r] >= 0 && label[r] < in_use, "label {} of row {}, but the vocabulary ends at {}", label[r], r,
                  in_use);
  const float* from = logits.as<float>();
  float* losses = loss.as<float>();
  if (dlogits.empty()) {
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) {
      const float *row = from + r * cols, best = max_of(row, in_use);
      losses[r] = std::log(sum_of_exp(row, best, in_use)) + (best - row[label[r]]);
    }
    return;
  }
  with_float_type("dlogits", dlogits, [&]<class T>(T) {
    T* gradient = dlogits.as<T>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r)
      losses[r] = row_loss(from + r * cols, label[r], in_use, cols, scale, gradient + r * cols);
  });
}

}  // namespace notellm

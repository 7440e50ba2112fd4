#include "kernels/cross_entropy_share.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

constexpr int numbers = 3;  // of a row's sums: maximum, Σ exp, label's logit
constexpr float none = -std::numeric_limits<float>::infinity();

void expect_labels(const Tensor& labels, int64_t in_use) {
  const int32_t* label = labels.as<int32_t>();
  for (int64_t r = 0; r < labels.rows(); ++r)
    NOTELLM_CHECK(label[r] >= -1 && label[r] < in_use, "label {} of row {}, but the share of the vocabulary ends at {}",
                  label[r], r, in_use);
}

// Of a row over all shares.
struct Whole {
  float best, sum, of_label;
};
Whole combine(const float* sums, int64_t shares, int64_t stride) {
  Whole all{std::numeric_limits<float>::lowest(), 0, none};
  for (int64_t s = 0; s < shares; ++s) all.best = std::max(all.best, sums[s * stride]);
  for (int64_t s = 0; s < shares; ++s) {
    all.sum += sums[s * stride + 1] * std::exp(sums[s * stride] - all.best);
    all.of_label = std::max(all.of_label, sums[s * stride + 2]);
  }
  return all;
}

template <class T>
void row_gradient(const float* logits, int32_t label, int64_t in_use, int64_t cols, const Whole& all, float scale,
                  T* dlogits) {
  const float factor = scale / all.sum;
  const float of_label = label >= 0 ? logits[label] : 0;
#pragma omp simd
  for (int64_t i = 0; i < in_use; ++i) dlogits[i] = rounded<T>(exp_or_zero(logits[i] - all.best) * factor);
  if (label >= 0) dlogits[label] = rounded<T>(exp_or_zero(of_label - all.best) * factor - scale);
  for (int64_t i = in_use; i < cols; ++i) dlogits[i] = rounded<T>(0.0f);
}

}  // namespace

void cross_entropy_sums(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums) {
  const int64_t rows = logits.rows(), cols = logits.cols(), in_use = columns_in_use;
  expect("logits", logits, DType::f32, rows, cols);
  expect("labels", labels, DType::i32, rows);
  expect("sums", sums, DType::f32, rows, numbers);
  NOTELLM_CHECK(0 <= in_use && in_use <= cols, "{} of {} columns in use", in_use, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::cross_entropy_sums(stream, logits, labels, in_use, sums);
  expect_labels(labels, in_use);
  const float* from = logits.as<float>();
  const int32_t* label = labels.as<int32_t>();
  float* to = sums.as<float>();
#pragma omp parallel for if (rows * cols > parallel_elements)
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = from + r * cols;
    const float best = in_use > 0 ? max_of(row, in_use) : std::numeric_limits<float>::lowest();
    to[r * numbers] = best;
    to[r * numbers + 1] = in_use > 0 ? sum_of_exp(row, best, in_use) : 0;
    to[r * numbers + 2] = label[r] >= 0 ? row[label[r]] : none;
  }
}

void cross_entropy_share(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums, float scale,
                         Tensor loss, Tensor dlogits) {
  const int64_t rows = logits.rows(), cols = logits.cols(), in_use = columns_in_use;
  expect("logits", logits, DType::f32, rows, cols);
  expect("labels", labels, DType::i32, rows);
  expect("loss", loss, DType::f32, rows);
  expect("sums", sums, DType::f32, sums.rows(), rows * numbers);
  expect("dlogits", dlogits, dlogits.dtype, rows, cols);
  NOTELLM_CHECK(0 <= in_use && in_use <= cols, "{} of {} columns in use", in_use, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::cross_entropy_share(stream, logits, labels, in_use, sums, scale, loss, dlogits);
  expect_labels(labels, in_use);
  const float *from = logits.as<float>(), *all_sums = sums.as<float>();
  const int32_t* label = labels.as<int32_t>();
  float* losses = loss.as<float>();
  with_float_type("dlogits", dlogits, [&]<class T>(T) {
    T* gradient = dlogits.as<T>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) {
      const Whole all = combine(all_sums + r * numbers, sums.rows(), rows * numbers);
      losses[r] = std::log(all.sum) + (all.best - all.of_label);
      row_gradient(from + r * cols, label[r], in_use, cols, all, scale, gradient + r * cols);
    }
  });
}

}  // namespace notellm

#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

template <class T>
void scale_row(const T* x, const T* gamma, float inv_rms, int64_t cols, T* y) {
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c)
    y[c] = rounded<T>(static_cast<float>(x[c]) * inv_rms * static_cast<float>(gamma[c]));
}

template <class T>
float sum_of_squares_of_row(const T* x, int64_t cols) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; ++c) sum += static_cast<float>(x[c]) * static_cast<float>(x[c]);
  return sum;
}

// x_out = x + delta, and the sum of its squares.
template <class T>
float add_row(const T* x, const T* delta, int64_t cols, T* x_out) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; ++c) {
    x_out[c] = rounded<T>(static_cast<float>(x[c]) + static_cast<float>(delta[c]));
    const float value = static_cast<float>(x_out[c]);
    sum += value * value;
  }
  return sum;
}

template <class T>
void backward_row(const T* dy, const T* x, const T* gamma, float inv_rms, int64_t cols, T* dx) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t c = 0; c < cols; ++c)
    dot += static_cast<float>(gamma[c]) * static_cast<float>(dy[c]) * static_cast<float>(x[c]);
  const float along_x = dot * inv_rms * inv_rms * inv_rms / static_cast<float>(cols);
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) {
    const float own = static_cast<float>(gamma[c]) * static_cast<float>(dy[c]) * inv_rms;
    dx[c] = rounded<T>(static_cast<float>(dx[c]) + own - static_cast<float>(x[c]) * along_x);
  }
}

constexpr int64_t block_cols = 64;
constexpr int64_t chunk_rows = 128;

// dgamma of `width` ≤ block_cols columns. Threads split columns, not rows: each sum has one owner and one order, and no
// workspace is needed. Chunks keep the f32 sums short.
template <class T>
void gamma_gradient(const T* dy, const T* x, const float* inv_rms, int64_t rows, int64_t cols, int64_t width,
                    float* dgamma) {
  for (int64_t begin = 0; begin < rows; begin += chunk_rows) {
    float sum[block_cols] = {};
    for (int64_t r = begin; r < std::min(rows, begin + chunk_rows); ++r) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c)
        sum[c] += static_cast<float>(dy[r * cols + c]) * (static_cast<float>(x[r * cols + c]) * inv_rms[r]);
    }
    for (int64_t c = 0; c < width; ++c) dgamma[c] += sum[c];
  }
}

}  // namespace

void rms_norm(Stream& stream, Tensor x, Tensor delta, Tensor gamma, float eps, Tensor x_out, Tensor y, Tensor inv_rms) {
  const int64_t rows = x.rows(), cols = x.cols();
  const bool add = !delta.empty();
  if (add) {
    expect("delta", delta, x.dtype, rows, cols);
    expect("x_out", x_out, x.dtype, rows, cols);
  }
  expect("gamma", gamma, x.dtype, cols);
  expect("y", y, x.dtype, rows, cols);
  expect("inv_rms", inv_rms, DType::f32, rows);
  NOTELLM_CHECK(eps > 0, "eps is {}, but must be positive", eps);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::rms_norm(stream, x, delta, gamma, eps, x_out, y, inv_rms);
  with_float_type("x", x, [&]<class T>(T) {
    const T *from = x.as<T>(), *more = add ? delta.as<T>() : nullptr, *scale = gamma.as<T>();
    T *sum = add ? x_out.as<T>() : x.as<T>(), *to = y.as<T>();
    float* inverse = inv_rms.as<float>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * cols;
      const float squares =
          add ? add_row(from + at, more + at, cols, sum + at) : sum_of_squares_of_row(from + at, cols);
      inverse[r] = 1.0f / std::sqrt(squares / static_cast<float>(cols) + eps);
      scale_row(sum + at, scale, inverse[r], cols, to + at);
    }
  });
}

void rms_norm_apply(Stream& stream, Tensor x, Tensor gamma, Tensor inv_rms, Tensor y) {
  const int64_t rows = x.rows(), cols = x.cols();
  expect("gamma", gamma, x.dtype, cols);
  expect("inv_rms", inv_rms, DType::f32, rows);
  expect("y", y, x.dtype, rows, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::rms_norm_apply(stream, x, gamma, inv_rms, y);
  with_float_type("x", x, [&]<class T>(T) {
    const T *from = x.as<T>(), *scale = gamma.as<T>();
    const float* inverse = inv_rms.as<float>();
    T* to = y.as<T>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) scale_row(from + r * cols, scale, inverse[r], cols, to + r * cols);
  });
}

// 16 rows or more to a part, so that what is written for a part is at most a sixteenth of what is read for it; at most
// 512 parts, about as many blocks as a large GPU runs at once.
int64_t rms_norm_backward_workspace(int64_t rows, int64_t cols) {
  return std::min<int64_t>((rows + 15) / 16, 512) * cols;
}

void rms_norm_backward(Stream& stream, Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma,
                       Tensor workspace) {
  const int64_t rows = x.rows(), cols = x.cols();
  expect("dy", dy, x.dtype, rows, cols);
  expect("gamma", gamma, x.dtype, cols);
  expect("inv_rms", inv_rms, DType::f32, rows);
  expect("dx", dx, x.dtype, rows, cols);
  expect("dgamma", dgamma, DType::f32, cols);
  expect("workspace", workspace, DType::f32, rms_norm_backward_workspace(rows, cols));
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::rms_norm_backward(stream, dy, x, gamma, inv_rms, dx, dgamma, workspace);
  with_float_type("x", x, [&]<class T>(T) {
    const T *from = x.as<T>(), *gradient = dy.as<T>(), *scale = gamma.as<T>();
    const float* inverse = inv_rms.as<float>();
    T* to = dx.as<T>();
    float* sums = dgamma.as<float>();
#pragma omp parallel if (rows * cols > parallel_elements)
    {
      // dx is no input of the second loop: no need to wait for the first.
#pragma omp for nowait
      for (int64_t r = 0; r < rows; ++r)
        backward_row(gradient + r * cols, from + r * cols, scale, inverse[r], cols, to + r * cols);
#pragma omp for
      for (int64_t c = 0; c < cols; c += block_cols)
        gamma_gradient(gradient + c, from + c, inverse, rows, cols, std::min(block_cols, cols - c), sums + c);
    }
  });
}

}  // namespace notellm

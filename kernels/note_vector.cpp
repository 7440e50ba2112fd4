#include "kernels/note_vector.h"

#include <cmath>

#include "kernels/checks.h"

namespace notellm {
namespace {

// In double: squares of f32 leave the range of f32 long before the vectors do.
double dot(const float* a, const float* b, int64_t cols) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

}  // namespace

void l2_normalize(Stream& stream, Tensor v, Tensor z, Tensor norm) {
  const int64_t rows = v.rows(), cols = v.cols();
  expect("v", v, DType::f32, rows, cols);
  expect("z", z, DType::f32, rows, cols);
  expect("norm", norm, DType::f32, rows);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::l2_normalize(stream, v, z, norm);
  const float* from = v.as<float>();
  float *to = z.as<float>(), *length = norm.as<float>();
#pragma omp parallel for if (rows * cols > parallel_elements)
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = from + r * cols;
    float* out = to + r * cols;
    length[r] = static_cast<float>(std::sqrt(dot(in, in, cols)));
    const float divisor = length[r] == 0 ? 1.0f : length[r];
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) out[c] = in[c] / divisor;
  }
}

void l2_normalize_backward(Stream& stream, Tensor dz, Tensor z, Tensor norm, Tensor dv) {
  const int64_t rows = z.rows(), cols = z.cols();
  expect("dz", dz, DType::f32, rows, cols);
  expect("z", z, DType::f32, rows, cols);
  expect("norm", norm, DType::f32, rows);
  expect("dv", dv, DType::f32, rows, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::l2_normalize_backward(stream, dz, z, norm, dv);
  const float *gradient = dz.as<float>(), *unit = z.as<float>(), *length = norm.as<float>();
  float* to = dv.as<float>();
#pragma omp parallel for if (rows * cols > parallel_elements)
  for (int64_t r = 0; r < rows; ++r) {
    const float *d = gradient + r * cols, *u = unit + r * cols;
    float* out = to + r * cols;
    const float along = static_cast<float>(dot(u, d, cols));
    const float inverse = length[r] == 0 ? 0.0f : 1.0f / length[r];
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) out[c] = (d[c] - u[c] * along) * inverse;
  }
}

}  // namespace notellm

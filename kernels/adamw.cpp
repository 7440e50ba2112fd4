#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

constexpr int64_t chunk = 1 << 14;  // fixed, so that no element's place in a vector loop depends on the threads

AdamWFactors factors_of(const AdamWStep& step) {
  const double t = static_cast<double>(step.step);
  const double bias1 = 1.0 - std::pow(static_cast<double>(step.beta1), t);
  const double bias2 = 1.0 - std::pow(static_cast<double>(step.beta2), t);
  return {step.gradient_scale,
          step.beta1,
          step.beta2,
          static_cast<float>(1.0 - static_cast<double>(step.beta1)),
          static_cast<float>(1.0 - static_cast<double>(step.beta2)),
          static_cast<float>(step.learning_rate / bias1),
          static_cast<float>(1.0 / std::sqrt(bias2)),
          step.eps,
          step.learning_rate * step.weight_decay};
}

void update(const AdamWFactors f, const float* gradient, int64_t n, float* weights, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    m[i] = f.beta1 * m[i] + f.keep1 * g;
    v[i] = f.beta2 * v[i] + f.keep2 * (g * g);
    weights[i] -= f.step_size * (m[i] / (std::sqrt(v[i]) * f.inverse_bias + f.eps)) + f.decay * weights[i];
  }
}

void round_to_bf16(const float* from, int64_t n, bf16* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = rounded<bf16>(from[i]);
}

double sum_of_squares_of(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

}  // namespace

void adamw(Stream& stream, const AdamWStep& step, Tensor gradient, Tensor weights, Tensor m, Tensor v, Tensor compute) {
  const int64_t n = weights.size();
  expect("weights", weights, DType::f32, n);
  expect("gradient", gradient, DType::f32, n);
  expect("m", m, DType::f32, n);
  expect("v", v, DType::f32, n);
  if (!compute.empty()) expect("compute", compute, DType::bf16, n);
  NOTELLM_CHECK(step.step >= 1, "step is {}, but they count from 1", step.step);
  const AdamWFactors factors = factors_of(step);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::adamw(stream, factors, gradient, weights, m, v, compute);
  const float* g = gradient.as<float>();
  float *w = weights.as<float>(), *first = m.as<float>(), *second = v.as<float>();
  bf16* rounded = compute.empty() ? nullptr : compute.as<bf16>();
#pragma omp parallel for if (n > parallel_elements)
  for (int64_t i = 0; i < n; i += chunk) {
    const int64_t size = std::min(chunk, n - i);
    update(factors, g + i, size, w + i, first + i, second + i);
    if (rounded) round_to_bf16(w + i, size, rounded + i);
  }
}

void sum_of_squares(Stream& stream, Tensor x, Tensor result, Tensor workspace) {
  const int64_t n = x.size(), parts = sum_of_squares_parts;
  expect("x", x, DType::f32, x.rows(), x.cols());
  expect("result", result, DType::f64, 1);
  expect("workspace", workspace, DType::f64, parts);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::sum_of_squares(stream, x, result, workspace);
  const float* data = x.as<float>();
  double* sums = workspace.as<double>();
  const int64_t size = (n + parts - 1) / parts;
#pragma omp parallel for if (n > parallel_elements)
  for (int64_t p = 0; p < parts; ++p)
    sums[p] = p * size < n ? sum_of_squares_of(data + p * size, std::min(size, n - p * size)) : 0.0;
  double total = 0;
  for (int64_t p = 0; p < parts; ++p) total += sums[p];
  *result.as<double>() = total;
}

}  // namespace notellm

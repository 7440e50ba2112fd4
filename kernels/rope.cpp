#include "kernels/rope.h"

#include <cmath>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

// One head: (a, b) → (a·cos − b·sin, b·cos + a·sin).
template <class T>
void rotate(T* a, T* b, const float* cosine, const float* sine, float direction, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float u = static_cast<float>(a[i]), w = static_cast<float>(b[i]), s = direction * sine[i];
    a[i] = rounded<T>(u * cosine[i] - w * s);
    b[i] = rounded<T>(w * cosine[i] + u * s);
  }
}

}  // namespace

std::vector<double> rope_frequencies(double theta, int64_t head_dim) {
  NOTELLM_CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim is {}, but must be even", head_dim);
  std::vector<double> frequencies;
  for (int64_t i = 0; i < head_dim / 2; ++i) frequencies.push_back(std::pow(theta, -2.0 * i / head_dim));
  return frequencies;
}

void rope_table(std::span<const double> frequencies, Tensor table) {
  const auto half = static_cast<int64_t>(frequencies.size());
  expect("table", table, DType::f32, table.rows(), 2 * half);
  for (int64_t p = 0; p < table.rows(); ++p) {
    float* row = table.as<float>() + p * 2 * half;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * frequencies[static_cast<size_t>(i)];
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void rope(Stream& stream, Tensor x, Tensor positions, Tensor table, int64_t heads, int64_t head_dim, int direction) {
  const int64_t rows = x.rows(), cols = x.cols(), half = head_dim / 2, known = table.rows();
  NOTELLM_CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim is {}, but must be even", head_dim);
  NOTELLM_CHECK(heads >= 0 && heads * head_dim <= cols, "{} heads of {} in {} columns", heads, head_dim, cols);
  expect("positions", positions, DType::i32, rows);
  expect("table", table, DType::f32, known, head_dim);
  NOTELLM_CHECK(direction == 1 || direction == -1, "direction is {}, but must be 1 or -1", direction);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::rope(stream, x, positions, table, heads, head_dim, direction);
  const int32_t* position = positions.as<int32_t>();
  for (int64_t r = 0; r < rows; ++r)
    NOTELLM_CHECK(position[r] >= 0 && position[r] < known, "position {} of row {}, but the table ends at {}",
                  position[r], r, known);
  const float* cosines = table.as<float>();
  with_float_type("x", x, [&]<class T>(T) {
    T* data = x.as<T>();
#pragma omp parallel for if (rows * heads * head_dim > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) {
      const float* cosine = cosines + position[r] * head_dim;
      for (int64_t h = 0; h < heads; ++h) {
        T* head = data + r * cols + h * head_dim;
        rotate(head, head + half, cosine, cosine + half, static_cast<float>(direction), half);
      }
    }
  });
}

}  // namespace notellm

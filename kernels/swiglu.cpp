#include "kernels/swiglu.h"

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

template <class T>
void forward_row(const T* gate, const T* up, int64_t cols, T* y) {
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) {
    const float g = static_cast<float>(gate[c]);
    y[c] = rounded<T>(g * logistic(g) * static_cast<float>(up[c]));
  }
}

template <class T>
void backward_row(const T* dy, const T* gate, const T* up, int64_t cols, T* d_gate, T* d_up, T* y) {
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) {
    const float g = static_cast<float>(gate[c]), u = static_cast<float>(up[c]), d = static_cast<float>(dy[c]);
    const float s = logistic(g);
    d_gate[c] = rounded<T>(d * u * s * (1.0f + g * (1.0f - s)));
    d_up[c] = rounded<T>(d * g * s);
    y[c] = rounded<T>(g * s * u);
  }
}

}  // namespace

void swiglu(Stream& stream, Tensor gate_up, Tensor y) {
  const int64_t rows = y.rows(), cols = y.cols();
  expect("gate_up", gate_up, y.dtype, rows, 2 * cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::swiglu(stream, gate_up, y);
  with_float_type("y", y, [&]<class T>(T) {
    const T* from = gate_up.as<T>();
    T* to = y.as<T>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r)
      forward_row(from + r * 2 * cols, from + r * 2 * cols + cols, cols, to + r * cols);
  });
}

void swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor d_gate_up, Tensor y) {
  const int64_t rows = dy.rows(), cols = dy.cols();
  expect("gate_up", gate_up, dy.dtype, rows, 2 * cols);
  expect("d_gate_up", d_gate_up, dy.dtype, rows, 2 * cols);
  expect("y", y, dy.dtype, rows, cols);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::swiglu_backward(stream, dy, gate_up, d_gate_up, y);
  with_float_type("dy", dy, [&]<class T>(T) {
    const T *from = gate_up.as<T>(), *gradient = dy.as<T>();
    T *to = d_gate_up.as<T>(), *again = y.as<T>();
#pragma omp parallel for if (rows * cols > parallel_elements)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * 2 * cols;
      backward_row(gradient + r * cols, from + at, from + at + cols, cols, to + at, to + at + cols, again + r * cols);
    }
  });
}

}  // namespace notellm

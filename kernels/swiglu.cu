#include "kernels/cuda_common.cuh"
#include "kernels/swiglu.h"

namespace notellm::gpu {
namespace {

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// One thread `n` columns of a row.
template <class T, int n>
__global__ void __launch_bounds__(RowGrid::threads) swiglu_kernel(const T* gate_up, T* y, int64_t rows, int cols) {
  const int64_t row = RowGrid::row();
  const int c = RowGrid::item() * n;
  if (row >= rows || c >= cols) return;
  const T* at = gate_up + row * 2 * cols + c;
  const Pack<T, n> gate = load<n>(at), up = load<n>(at + cols);
  Pack<T, n> result;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float g = to_float(gate.x[k]);
    result.x[k] = from_float<T>(g * sigmoid(g) * to_float(up.x[k]));
  }
  store(y + row * cols + c, result);
}

// The same; each thread has read its elements before it writes them, so that results may lie on inputs.
template <class T, int n>
__global__ void __launch_bounds__(RowGrid::threads)
    swiglu_backward_kernel(const T* dy, const T* gate_up, T* d_gate_up, T* y, int64_t rows, int cols) {
  const int64_t row = RowGrid::row();
  const int c = RowGrid::item() * n;
  if (row >= rows || c >= cols) return;
  const int64_t at = row * 2 * cols + c;
  const Pack<T, n> gate = load<n>(gate_up + at), up = load<n>(gate_up + at + cols),
                   gradient = load<n>(dy + row * cols + c);
  Pack<T, n> d_gate, d_up, again;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const float g = to_float(gate.x[k]), u = to_float(up.x[k]), d = to_float(gradient.x[k]);
    const float s = sigmoid(g);
    d_gate.x[k] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
    d_up.x[k] = from_float<T>(d * g * s);
    again.x[k] = from_float<T>(g * s * u);
  }
  store(d_gate_up + at, d_gate);
  store(d_gate_up + at + cols, d_up);
  store(y + row * cols + c, again);
}

template <class T, int n>
void launch(Stream& stream, Tensor gate_up, Tensor y) {
  const RowGrid g(y.rows(), y.cols() / n);
  swiglu_kernel<T, n>
      <<<g.grid, g.block, 0, native(stream)>>>(gate_up.as<T>(), y.as<T>(), y.rows(), static_cast<int>(y.cols()));
  check_launch("swiglu_kernel");
}

template <class T, int n>
void launch_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor d_gate_up, Tensor y) {
  const RowGrid g(y.rows(), y.cols() / n);
  swiglu_backward_kernel<T, n><<<g.grid, g.block, 0, native(stream)>>>(dy.as<T>(), gate_up.as<T>(), d_gate_up.as<T>(),
                                                                       y.as<T>(), y.rows(), static_cast<int>(y.cols()));
  check_launch("swiglu_backward_kernel");
}

}  // namespace

void swiglu(Stream& stream, Tensor gate_up, Tensor y) {
  if (y.size() == 0) return;
  with_float_type("y", y, [&]<class T>(T) {
    whole_packs<T>(y.cols(), gate_up.as<T>(), y.as<T>()) ? launch<T, Pack<T>::size>(stream, gate_up, y)
                                                         : launch<T, 1>(stream, gate_up, y);
  });
}

void swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor d_gate_up, Tensor y) {
  if (y.size() == 0) return;
  with_float_type("y", y, [&]<class T>(T) {
    whole_packs<T>(y.cols(), dy.as<T>(), gate_up.as<T>(), d_gate_up.as<T>(), y.as<T>())
        ? launch_backward<T, Pack<T>::size>(stream, dy, gate_up, d_gate_up, y)
        : launch_backward<T, 1>(stream, dy, gate_up, d_gate_up, y);
  });
}

}  // namespace notellm::gpu

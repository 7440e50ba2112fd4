#include "kernels/cuda_common.cuh"
#include "kernels/swiglu.h"

namespace notellm::gpu {
namespace {

constexpr int threads = 256;

__device__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// One thread a pack of the result; cols is a multiple of a pack.
template <class T>
__global__ void __launch_bounds__(threads) swiglu_kernel(const T* gate_up, T* y, int64_t rows, int64_t cols) {
  const int64_t packs = cols / Pack<T>::size, i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= rows * packs) return;
  const int64_t row = i / packs, c = i % packs * Pack<T>::size;
  const Pack<T> gate = load_pack(gate_up + row * 2 * cols + c), up = load_pack(gate_up + row * 2 * cols + cols + c);
  Pack<T> result;
#pragma unroll
  for (int k = 0; k < Pack<T>::size; ++k) {
    const float g = to_float(gate.x[k]);
    result.x[k] = from_float<T>(g * sigmoid(g) * to_float(up.x[k]));
  }
  store_pack(y + row * cols + c, result);
}

template <class T>
void launch(Stream& stream, Tensor gate_up, Tensor y) {
  const int64_t items = y.rows() * (y.cols() / Pack<T>::size);
  if (items == 0) return;
  swiglu_kernel<T><<<static_cast<unsigned>(ceil_div(items, threads)), threads, 0, native(stream)>>>(
      gate_up.as<T>(), y.as<T>(), y.rows(), y.cols());
  check_launch("swiglu_kernel");
}

}  // namespace

void swiglu(Stream& stream, Tensor gate_up, Tensor y) {
  y.dtype == DType::f32 ? launch<float>(stream, gate_up, y) : launch<bf16>(stream, gate_up, y);
}

}  // namespace notellm::gpu

#include "kernels/adamw.h"
#include "kernels/cuda_common.cuh"

namespace notellm::gpu {
namespace {

constexpr int threads = 256;

__device__ void update(const AdamWFactors& f, float gradient, float& w, float& m, float& v) {
  const float g = gradient * f.gradient_scale;
  m = f.beta1 * m + f.keep1 * g;
  v = f.beta2 * v + f.keep2 * (g * g);
  w -= f.step_size * (m / (sqrtf(v) * f.inverse_bias + f.eps)) + f.decay * w;
}

// One thread `n` elements, the last one what is left. compute may be null.
template <int n>
__global__ void __launch_bounds__(threads, 5) adamw_kernel(AdamWFactors f, const float* gradient, float* weights,
                                                           float* m, float* v, bf16* compute, int64_t size) {
  int64_t i = (blockIdx.x * int64_t{threads} + threadIdx.x) * n;
  if (i + n > size) {
    for (; i < size; ++i) {
      update(f, gradient[i], weights[i], m[i], v[i]);
      if (compute) compute[i] = from_float<bf16>(weights[i]);
    }
    return;
  }
  const Pack<float, n> g = load<n>(gradient + i);
  Pack<float, n> w = load<n>(weights + i), first = load<n>(m + i), second = load<n>(v + i);
  Pack<bf16, n> narrow;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    update(f, g.x[k], w.x[k], first.x[k], second.x[k]);
    narrow.x[k] = from_float<bf16>(w.x[k]);
  }
  store(weights + i, w);
  store(m + i, first);
  store(v + i, second);
  if (compute) store(compute + i, narrow);
}

// Σ of one number of each thread, the same for the same numbers; thread 0 has it.
__device__ double block_sum(double x) {
  __shared__ double of_warp[threads / warp_size];
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  x = warp_sum(x);
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < threads / warp_size; ++w) sum += of_warp[w];
  return sum;
}

// A block a part: packs blockIdx.x, + gridDim.x, … of 256 packs each.
template <int n>
__global__ void __launch_bounds__(threads) squares_kernel(const float* x, int64_t size, double* parts) {
  double sum = 0;
  const int64_t stride = int64_t{gridDim.x} * threads * n;
#pragma unroll 1  // enough blocks are under way
  for (int64_t i = (blockIdx.x * int64_t{threads} + threadIdx.x) * n; i < size; i += stride) {
    Pack<float, n> v = {};
    if (i + n <= size)
      v = load<n>(x + i);
    else
#pragma unroll
      for (int k = 0; k < n; ++k)
        if (i + k < size) v.x[k] = x[i + k];
#pragma unroll
    for (int k = 0; k < n; ++k) sum += static_cast<double>(v.x[k]) * static_cast<double>(v.x[k]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(threads) add_parts_kernel(const double* parts, int count, double* result) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += threads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *result = sum;
}

}  // namespace

void adamw(Stream& stream, const AdamWFactors& f, Tensor gradient, Tensor weights, Tensor m, Tensor v, Tensor compute) {
  const int64_t size = weights.size();
  if (size == 0) return;
  bf16* narrow = compute.empty() ? nullptr : compute.as<bf16>();
  const auto launch = [&](auto kernel, int n) {
    kernel<<<static_cast<unsigned>(ceil_div(size, threads * n)), threads, 0, native(stream)>>>(
        f, gradient.as<float>(), weights.as<float>(), m.as<float>(), v.as<float>(), narrow, size);
    check_launch("adamw_kernel");
  };
  aligned(gradient.as<float>(), weights.as<float>(), m.as<float>(), v.as<float>(), narrow) ? launch(adamw_kernel<4>, 4)
                                                                                           : launch(adamw_kernel<1>, 1);
}

void sum_of_squares(Stream& stream, Tensor x, Tensor result, Tensor workspace) {
  constexpr int parts = static_cast<int>(sum_of_squares_parts);
  const auto launch = [&](auto kernel) {
    kernel<<<parts, threads, 0, native(stream)>>>(x.as<float>(), x.size(), workspace.as<double>());
    check_launch("squares_kernel");
  };
  aligned(x.as<float>()) ? launch(squares_kernel<4>) : launch(squares_kernel<1>);
  add_parts_kernel<<<1, threads, 0, native(stream)>>>(workspace.as<double>(), parts, result.as<double>());
  check_launch("add_parts_kernel");
}

}  // namespace notellm::gpu

#include "kernels/cross_entropy_share.h"
#include "kernels/cuda_common.cuh"

namespace notellm::gpu {
namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int numbers = 3;                  // of a row's sums
constexpr float lowest = -3.402823466e38f;  // not −∞, which less −∞ would be NaN

// A block a row: each thread a maximum and a sum over its columns, then those of all.
template <int n>
__global__ void __launch_bounds__(threads)
    cross_entropy_sums_kernel(const float* logits, const int32_t* labels, int in_use, int cols, float* sums) {
  __shared__ float maxima[warps], parts[warps];
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, label = labels[blockIdx.x];
  const float* row = logits + int64_t{blockIdx.x} * cols;
  float best = lowest, sum = 0;
  for (int c = threadIdx.x * n; c < in_use; c += threads * n) {
    const Pack<float, n> x = load<n>(row + c);
    float top = best;
#pragma unroll
    for (int k = 0; k < n; ++k)
      if (c + k < in_use) top = fmaxf(top, x.x[k]);
    sum *= __expf(best - top);
    best = top;
#pragma unroll
    for (int k = 0; k < n; ++k)
      if (c + k < in_use) sum += __expf(x.x[k] - best);
  }
  const float of_warp = warp_max(best);
  if (lane == 0) maxima[warp] = of_warp;
  __syncthreads();
  const float of_all = warp_max(lane < warps ? maxima[lane] : lowest);
  sum = warp_sum(sum * __expf(best - of_all));
  if (lane == 0) parts[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  sum = warp_sum(lane < warps ? parts[lane] : 0.0f);
  if (lane != 0) return;
  float* to = sums + int64_t{blockIdx.x} * numbers;
  to[0] = of_all;
  to[1] = sum;
  to[2] = label >= 0 ? row[label] : -INFINITY;
}

// A block a row. dlogits may be logits: a thread writes what it alone has read. Every thread adds up the shares' sums.
template <class T, int n>
__global__ void __launch_bounds__(threads)
    cross_entropy_share_kernel(const float* logits, const int32_t* labels, int in_use, int cols, const float* sums,
                               int shares, float scale, float* loss, T* dlogits) {
  const int64_t stride = int64_t{gridDim.x} * numbers;
  const float* of_row = sums + int64_t{blockIdx.x} * numbers;
  float best = lowest, sum = 0, of_label = -INFINITY;
  for (int s = 0; s < shares; ++s) best = fmaxf(best, of_row[s * stride]);
  for (int s = 0; s < shares; ++s) {
    sum += of_row[s * stride + 1] * __expf(of_row[s * stride] - best);
    of_label = fmaxf(of_label, of_row[s * stride + 2]);
  }
  if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + (best - of_label);
  const float factor = __fdividef(scale, sum);
  const int label = labels[blockIdx.x];
  const float* row = logits + int64_t{blockIdx.x} * cols;
  T* to = dlogits + int64_t{blockIdx.x} * cols;
  for (int c = threadIdx.x * n; c < cols; c += threads * n) {
    const Pack<float, n> x = load<n>(row + c);
    Pack<T, n> d;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      float gradient = c + k < in_use ? __expf(x.x[k] - best) * factor : 0.0f;
      if (c + k == label) gradient -= scale;
      d.x[k] = from_float<T>(gradient);
    }
    store(to + c, d);
  }
}

}  // namespace

void cross_entropy_sums(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums) {
  if (logits.rows() == 0) return;
  const auto run = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(logits.rows()), threads, 0, native(stream)>>>(
        logits.as<float>(), labels.as<int32_t>(), static_cast<int>(columns_in_use), static_cast<int>(logits.cols()),
        sums.as<float>());
    check_launch("cross_entropy_sums_kernel");
  };
  whole_packs<float>(logits.cols(), logits.as<float>()) ? run(cross_entropy_sums_kernel<4>)
                                                        : run(cross_entropy_sums_kernel<1>);
}

void cross_entropy_share(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums, float scale,
                         Tensor loss, Tensor dlogits) {
  if (logits.rows() == 0) return;
  with_float_type("dlogits", dlogits, [&]<class T>(T) {
    const auto run = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(logits.rows()), threads, 0, native(stream)>>>(
          logits.as<float>(), labels.as<int32_t>(), static_cast<int>(columns_in_use), static_cast<int>(logits.cols()),
          sums.as<float>(), static_cast<int>(sums.rows()), scale, loss.as<float>(), dlogits.as<T>());
      check_launch("cross_entropy_share_kernel");
    };
    whole_packs<float>(logits.cols(), logits.as<float>(), dlogits.as<T>()) ? run(cross_entropy_share_kernel<T, 4>)
                                                                           : run(cross_entropy_share_kernel<T, 1>);
  });
}

}  // namespace notellm::gpu

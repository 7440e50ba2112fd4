#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/cuda_common.cuh"

namespace notellm::gpu {
namespace {

constexpr int few = 256, many = 1024;  // threads of a block
constexpr int most_held =
    8;  // packs of a thread in registers: rows of 8,192 columns with few threads, 32,768 with many
constexpr float lowest = -3.402823466e38f;  // not −∞, which less −∞ would be NaN

// Of one number of each thread, in a fixed order: in every thread. `of_warp` is shared memory of this call alone.
template <int threads, class WarpReduce>
__device__ float block_reduce(float x, float neutral, float* of_warp, WarpReduce reduce) {
  const int lane = threadIdx.x % warp_size;
  x = reduce(x);
  if (lane == 0) of_warp[threadIdx.x / warp_size] = x;
  __syncthreads();
  return reduce(lane < threads / warp_size ? of_warp[lane] : neutral);
}

// The packs of a thread's columns: of_held(j, c) for each of those in registers, or of_rest(c) for all when none is.
template <int threads, int n, int held, class Held, class Rest>
__device__ void for_packs(int cols, const Held& of_held, const Rest& of_rest) {
  constexpr int stride = threads * n;
  const int begin = threadIdx.x * n;
#pragma unroll
  for (int j = 0; j < held; ++j)
    if (begin + j * stride < cols) of_held(j, begin + j * stride);
  if constexpr (held == 0)
    for (int c = begin; c < cols; c += stride) of_rest(c);
}

// A block a row. dlogits may be null, or logits: a thread writes what it alone has read; the label's logit is read by
// all of them before the first barrier. held = 0: the row is too long for the registers, and is read three times.
template <class T, int threads, int n, int held>
__global__ void __launch_bounds__(threads) cross_entropy_kernel(const float* logits, const int32_t* labels, int in_use,
                                                                int cols, float scale, float* loss, T* dlogits) {
  __shared__ float maxima[warp_size], sums[warp_size];
  const float* row = logits + int64_t{blockIdx.x} * cols;
  const int label = labels[blockIdx.x];
  const float of_label = row[label];
  // −∞ beyond the columns in use
  const auto load_in_use = [&](int c) {
    Pack<float, n> x = load<n>(row + c);
    if (c + n > in_use)
#pragma unroll
      for (int k = 0; k < n; ++k)
        if (c + k >= in_use) x.x[k] = -INFINITY;
    return x;
  };

  Pack<float, n> x[held ? held : 1];
  float best = lowest;
  const auto take_best = [&](const Pack<float, n>& p) {
#pragma unroll
    for (int k = 0; k < n; ++k) best = fmaxf(best, p.x[k]);
  };
  for_packs<threads, n, held>(
      in_use, [&](int j, int c) { take_best(x[j] = load_in_use(c)); }, [&](int c) { take_best(load_in_use(c)); });
  best = block_reduce<threads>(best, lowest, maxima, [](float v) { return warp_max(v); });

  float sum = 0;
  const auto exponentials = [&](Pack<float, n> p) {
#pragma unroll
    for (int k = 0; k < n; ++k) p.x[k] = __expf(p.x[k] - best);
    return p;
  };
  const auto add = [&](const Pack<float, n>& p) {
#pragma unroll
    for (int k = 0; k < n; ++k) sum += p.x[k];
  };
  for_packs<threads, n, held>(
      in_use, [&](int j, int) { add(x[j] = exponentials(x[j])); }, [&](int c) { add(exponentials(load_in_use(c))); });
  sum = block_reduce<threads>(sum, 0.0f, sums, [](float v) { return warp_sum(v); });
  if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + (best - of_label);
  if (!dlogits) return;

  const float factor = __fdividef(scale, sum);  // 1 ≤ sum
  T* to = dlogits + int64_t{blockIdx.x} * cols;
  const auto write = [&](int c, const Pack<float, n>& p) {
    Pack<T, n> d;
#pragma unroll
    for (int k = 0; k < n; ++k) d.x[k] = from_float<T>(p.x[k] * factor);
    if (c <= label && label < c + n || c + n > in_use)
#pragma unroll
      for (int k = 0; k < n; ++k)
        if (c + k >= in_use)
          d.x[k] = from_float<T>(0.0f);
        else if (c + k == label)
          d.x[k] = from_float<T>(p.x[k] * factor - scale);
    store(to + c, d);
  };
  for_packs<threads, n, held>(
      cols, [&](int j, int c) { write(c, x[j]); }, [&](int c) { write(c, exponentials(load_in_use(c))); });
}

template <class T, int n>
void launch(Stream& stream, Tensor logits, Tensor labels, int64_t in_use, float scale, Tensor loss, T* dlogits) {
  const int64_t cols = logits.cols();
  const auto run = [&](auto kernel, int threads) {
    kernel<<<static_cast<unsigned>(logits.rows()), threads, 0, native(stream)>>>(
        logits.as<float>(), labels.as<int32_t>(), static_cast<int>(in_use), static_cast<int>(cols), scale,
        loss.as<float>(), dlogits);
    check_launch("cross_entropy_kernel");
  };
  if (cols <= most_held * n * few)
    run(cross_entropy_kernel<T, few, n, most_held>, few);
  else if (cols <= most_held * n * many)
    run(cross_entropy_kernel<T, many, n, most_held>, many);
  else
    run(cross_entropy_kernel<T, many, n, 0>, many);
}

}  // namespace

void cross_entropy(Stream& stream, Tensor logits, Tensor labels, int64_t vocabulary_in_use, float scale, Tensor loss,
                   Tensor dlogits) {
  if (logits.rows() == 0) return;
  const auto with = [&]<class T>(T* to) {
    whole_packs<float>(logits.cols(), logits.as<float>(), to)
        ? launch<T, 4>(stream, logits, labels, vocabulary_in_use, scale, loss, to)
        : launch<T, 1>(stream, logits, labels, vocabulary_in_use, scale, loss, to);
  };
  if (dlogits.empty()) return with(static_cast<float*>(nullptr));
  with_float_type("dlogits", dlogits, [&]<class T>(T) { with(dlogits.as<T>()); });
}

}  // namespace notellm::gpu

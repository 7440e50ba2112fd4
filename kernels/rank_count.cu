#include "kernels/cuda_common.cuh"
#include "kernels/rank_count.h"

namespace notellm::gpu {
namespace {

constexpr int threads = 256, warps = threads / warp_size;

__device__ int warp_sum(int x) {
#pragma unroll
  for (int other = warp_size / 2; other > 0; other /= 2) x += __shfl_xor_sync(all_lanes, x, other);
  return x;
}

// A warp a question.
__global__ void __launch_bounds__(threads)
    rank_count_kernel(const float* scores, const float* prior, int64_t first, const int32_t* rows, const float* target,
                      const int2* left_out, int2* counts, int n, int columns, int stride) {
  const int i = blockIdx.x * warps + threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  if (i >= n) return;
  const float* row = scores + int64_t{rows[i]} * stride;
  const float wanted = target[i];
  const int2 out = left_out[i];
  int better = 0, ties = 0;
  for (int x = lane; x < columns; x += warp_size) {
    const float score = prior ? row[x] + prior[x] : row[x];
    const int64_t item = first + x;
    if (item == out.x || item == out.y) continue;
    better += !(score <= wanted);
    ties += score == wanted;
  }
  better = warp_sum(better);
  ties = warp_sum(ties);
  if (lane != 0) return;
  const int2 before = counts[i];
  counts[i] = make_int2(before.x + better, before.y + ties);
}

__global__ void __launch_bounds__(threads) pick_scores_kernel(const float* scores, const float* prior,
                                                              const int32_t* rows, float* target, int n, int columns) {
  const int i = blockIdx.x * threads + threadIdx.x;
  if (i < n) target[i] = scores[int64_t{rows[i]} * columns + i] + (prior ? prior[i] : 0.0f);
}

const float* pointer(const Tensor& prior) { return prior.empty() ? nullptr : prior.as<float>(); }

}  // namespace

void rank_count(Stream& stream, Tensor scores, int64_t columns, Tensor prior, int64_t first, Tensor rows, Tensor target,
                Tensor left_out, Tensor counts) {
  const int64_t n = rows.rows();
  if (n == 0) return;
  rank_count_kernel<<<static_cast<unsigned>(ceil_div(n, warps)), threads, 0, native(stream)>>>(
      scores.as<float>(), pointer(prior), first, rows.as<int32_t>(), target.as<float>(),
      reinterpret_cast<const int2*>(left_out.as<int32_t>()), reinterpret_cast<int2*>(counts.as<int32_t>()),
      static_cast<int>(n), static_cast<int>(columns), static_cast<int>(scores.cols()));
  check_launch("rank_count_kernel");
}

void pick_scores(Stream& stream, Tensor scores, Tensor prior, Tensor rows, Tensor target) {
  const int64_t n = rows.rows();
  if (n == 0) return;
  pick_scores_kernel<<<static_cast<unsigned>(ceil_div(n, threads)), threads, 0, native(stream)>>>(
      scores.as<float>(), pointer(prior), rows.as<int32_t>(), target.as<float>(), static_cast<int>(n),
      static_cast<int>(scores.cols()));
  check_launch("pick_scores_kernel");
}

}  // namespace notellm::gpu

#include "kernels/cuda_common.cuh"
#include "kernels/sample.h"

namespace notellm::gpu {
namespace {

// A block a row: few rows, many columns. What is searched for is found by halving the range of keys, 32 passes over a
// row that stays in the second-level cache, rather than by counting digits, whose atomic additions to shared memory
// would mostly meet in the few digits that logits have in common.
constexpr int threads = 1024, warps = threads / warp_size;

// Larger for larger numbers; the same for both zeros; the largest for NaN.
__device__ uint32_t key_of(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float number_of(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }
__device__ bool is_finite(float x) { return fabsf(x) < INFINITY; }

// What one row may choose from.
struct Row {
  const float* logits;
  const int32_t* tokens;  // null: all columns
  int count;

  __device__ Row(const float* all, int64_t cols, int columns, const int32_t* offsets, const int32_t* list)
      : logits(all + blockIdx.x * cols), tokens(nullptr), count(columns) {
    if (!offsets) return;
    tokens = list + offsets[blockIdx.x];
    count = offsets[blockIdx.x + 1] - offsets[blockIdx.x];
  }
  __device__ int token(int c) const { return tokens ? tokens[c] : c; }
  __device__ float logit(int c) const { return logits[token(c)]; }
};

struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Max {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// All threads' values to one, on all threads. `of_warp`: shared, one place a warp; free again on return.
template <class Combine>
__device__ uint64_t block_reduce(uint64_t x, uint64_t* of_warp, Combine combine) {
#pragma unroll
  for (int other = warp_size / 2; other > 0; other /= 2)
    x = combine(x, static_cast<uint64_t>(__shfl_xor_sync(all_lanes, static_cast<unsigned long long>(x), other)));
  if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = x;
  __syncthreads();
  x = of_warp[0];
  for (int w = 1; w < warps; ++w) x = combine(x, of_warp[w]);
  __syncthreads();
  return x;
}

// The largest key in the upper half, and of those with it the first one's place, from behind, in the lower; 0: none.
__device__ uint64_t find_largest(const Row& row, uint64_t* of_warp) {
  uint64_t best = 0;
  for (int c = static_cast<int>(threadIdx.x); c < row.count; c += threads)
    best = Max()(best, uint64_t{key_of(row.logit(c))} << 32 | (0xffffffffu - static_cast<uint32_t>(c)));
  return block_reduce(best, of_warp, Max());
}

__global__ void __launch_bounds__(threads)
    argmax_kernel(const float* logits, int64_t cols, int columns, const int32_t* offsets, const int32_t* list,
                  int32_t* token, float* largest) {
  __shared__ uint64_t of_warp[warps];
  const Row row(logits, cols, columns, offsets, list);
  const uint64_t best = find_largest(row, of_warp);
  if (threadIdx.x != 0) return;
  const float value = best == 0 ? NAN : number_of(static_cast<uint32_t>(best >> 32));
  token[blockIdx.x] = is_finite(value) ? row.token(static_cast<int>(0xffffffffu - static_cast<uint32_t>(best))) : -1;
  largest[blockIdx.x] = value;
}

// Σ weight(logit) of this thread's candidates whose key is not below `least`, then of the block's.
template <class Weight>
__device__ uint64_t weight_from(const Row& row, uint32_t least, uint64_t* of_warp, const Weight& weight) {
  uint64_t sum = 0;
  for (int c = static_cast<int>(threadIdx.x); c < row.count; c += threads) {
    const float x = row.logit(c);
    if (key_of(x) >= least) sum += weight(x);
  }
  return block_reduce(sum, of_warp, Sum());
}

// The largest key, not below `least`, such that the candidates from it on have together at least `needed`; those from
// `least` on have.
template <class Weight>
__device__ uint32_t threshold(const Row& row, uint32_t least, uint64_t needed, uint64_t* of_warp,
                              const Weight& weight) {
  uint32_t found = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
    if ((found | bit) <= least || weight_from(row, found | bit, of_warp, weight) >= needed) found |= bit;
  return found;
}

// The first candidate, not below `least`, at which the running sum of weights is above `wanted`: each warp has the sum
// of a run of candidates, and the warp in whose run it is goes through that once more.
template <class Weight>
__device__ void draw(const Row& row, uint32_t least, uint64_t wanted, uint64_t* of_warp, const Weight& weight,
                     int32_t* token) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  const int run = (row.count + threads - 1) / threads * warp_size;
  const int begin = min(warp * run, row.count), end = min(begin + run, row.count);
  const auto weight_at = [&](int c) -> uint64_t {
    if (c >= end) return 0;
    const float x = row.logit(c);
    return key_of(x) >= least ? weight(x) : 0;
  };
  // The sum over this lane and those before it.
  const auto sum_before = [&](uint64_t x) {
#pragma unroll
    for (int distance = 1; distance < warp_size; distance *= 2) {
      const uint64_t other = __shfl_up_sync(all_lanes, static_cast<unsigned long long>(x), distance);
      if (lane >= distance) x += other;
    }
    return x;
  };
  uint64_t mine = 0;
  for (int c = begin + lane; c < end; c += warp_size) mine += weight_at(c);
  mine = sum_before(mine);
  if (lane == warp_size - 1) of_warp[warp] = mine;
  __syncthreads();
  uint64_t before = 0;
  for (int w = 0; w < warp; ++w) before += of_warp[w];
  if (wanted < before || wanted >= before + of_warp[warp]) return;
  for (int c = begin; c < end; c += warp_size) {
    const uint64_t sum = before + sum_before(weight_at(c + lane));
    const unsigned reached = __ballot_sync(all_lanes, sum > wanted);
    if (reached != 0) {
      if (lane == 0) token[blockIdx.x] = row.token(c + __ffs(static_cast<int>(reached)) - 1);
      return;
    }
    before = __shfl_sync(all_lanes, static_cast<unsigned long long>(sum), warp_size - 1);
  }
}

__global__ void __launch_bounds__(threads)
    sample_kernel(const float* logits, int64_t cols, int columns, const int32_t* offsets, const int32_t* list,
                  Sampling sampling, const float* uniform, int32_t* token) {
  __shared__ uint64_t of_warp[warps];
  const Row row(logits, cols, columns, offsets, list);
  const uint64_t best = find_largest(row, of_warp);
  const float top = best == 0 ? NAN : number_of(static_cast<uint32_t>(best >> 32));
  if (!is_finite(top)) {
    if (threadIdx.x == 0) token[blockIdx.x] = -1;
    return;
  }
  const auto weight = [&](float x) { return static_cast<uint64_t>(expf((x - top) / sampling.temperature) * 0x1p32f); };
  uint32_t least = 0;
  if (sampling.top_k > 0 && sampling.top_k < row.count)
    least = threshold(row, least, static_cast<uint64_t>(sampling.top_k), of_warp, [](float) { return uint64_t{1}; });
  uint64_t kept = weight_from(row, least, of_warp, weight);
  if (sampling.top_p < 1) {
    const auto needed = static_cast<uint64_t>(ceil(sampling.top_p * static_cast<double>(kept)));
    least = threshold(row, least, needed, of_warp, weight);
    kept = weight_from(row, least, of_warp, weight);
  }
  const auto wanted = static_cast<uint64_t>(uniform[blockIdx.x] * static_cast<double>(kept));
  draw(row, least, wanted, of_warp, weight, token);
}

const int32_t* pointer(const Tensor& t) { return t.empty() ? nullptr : t.as<int32_t>(); }

}  // namespace

void argmax(Stream& stream, Tensor logits, const Candidates& candidates, Tensor token, Tensor largest) {
  if (logits.rows() == 0) return;
  argmax_kernel<<<static_cast<unsigned>(logits.rows()), threads, 0, native(stream)>>>(
      logits.as<float>(), logits.cols(), static_cast<int>(candidates.columns), pointer(candidates.offsets),
      pointer(candidates.tokens), token.as<int32_t>(), largest.as<float>());
  check_launch("argmax_kernel");
}

void sample(Stream& stream, Tensor logits, const Candidates& candidates, const Sampling& sampling, Tensor uniform,
            Tensor token) {
  if (logits.rows() == 0) return;
  sample_kernel<<<static_cast<unsigned>(logits.rows()), threads, 0, native(stream)>>>(
      logits.as<float>(), logits.cols(), static_cast<int>(candidates.columns), pointer(candidates.offsets),
      pointer(candidates.tokens), sampling, uniform.as<float>(), token.as<int32_t>());
  check_launch("sample_kernel");
}

}  // namespace notellm::gpu

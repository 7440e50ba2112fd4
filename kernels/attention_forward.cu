// The forward pass on tensor cores (FlashAttention-2, arXiv 2307.08691): a block has 64 rows of queries, 16 a warp, and
// goes over their keys in tiles of 64, two of which are in shared memory: one that is read, one that arrives.
#include <cmath>

#include "kernels/attention_cuda.cuh"

namespace notellm::gpu {
namespace {

template <int head_dim>
struct Shared {
  static constexpr int stage = 2 * Tile<head_dim>::bytes;  // keys, values
  static constexpr int rows = 2 * stage;                   // BlockRows
  static constexpr int bytes = rows + sizeof(BlockRows);
};

// A lane's two rows, g and g + 8 of the warp's. `top` is what has been taken from score · scale · log2 e; what was
// summed is the powers of 2 of the rest.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // the lane's own columns
};

// Raises `top` to the largest score so far, where some row of the warp has scores so far above it that its sums would
// grow too large; mostly none has, and nothing is done.
template <int head_dim>
__device__ __forceinline__ void raise_top(const FragmentC (&s)[8], float scale_log2, Softmax& state,
                                          FragmentC (&o)[head_dim / 8]) {
  constexpr float room = 8;  // sums of powers up to 2^8: nothing is lost in f32, nor in P as bf16
  float max[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = fmaxf(s[0].x[2 * r], s[0].x[2 * r + 1]);
#pragma unroll
    for (int n = 1; n < 8; ++n) max[r] = fmaxf(fmaxf(max[r], s[n].x[2 * r]), s[n].x[2 * r + 1]);
    max[r] *= scale_log2;
  }
  if (!__any_sync(all_lanes, max[0] > state.top[0] + room || max[1] > state.top[1] + room)) return;
  float fade[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = fmaxf(max[r], __shfl_xor_sync(all_lanes, max[r], 1));
    max[r] = fmaxf(max[r], __shfl_xor_sync(all_lanes, max[r], 2));
    const float top = fmaxf(state.top[r], max[r]);
    fade[r] = exp2_approx(state.top[r] - top);
    state.top[r] = top;
    state.sum[r] *= fade[r];
  }
#pragma unroll
  for (int n = 0; n < head_dim / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n].x[e] *= fade[e / 2];
}

template <int head_dim>
__global__ void __launch_bounds__(attention_threads, head_dim == 64 ? 3 : 2)
    attention_forward_kernel(const AttentionArguments<bf16> a) {
  extern __shared__ __align__(256) char shared[];
  BlockRows& rows = *reinterpret_cast<BlockRows*>(shared + Shared<head_dim>::rows);
  const QueryTile tile = a.query_tiles[blockIdx.x / a.heads];
  const int head = blockIdx.x % a.heads;
  int count;
  if (!tile.in_segment || !fill_block_rows(a, tile, head, rows, count)) return;
  __syncthreads();

  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, row0 = warp * 16 + lane / 4;
  const int keys = rows.visible[tile_size - 1], tiles = (keys + tile_size - 1) / tile_size;
  const uint32_t base = shared_address(shared);
  const KeyCopy<head_dim> copy(a, tile, head / a.group, keys - 1);
  copy_rows<head_dim>(base + Shared<head_dim>::stage, a.q, rows);
  commit_copies();
  copy.start(base, 0);
  wait_copies<1>();
  __syncthreads();
  FragmentA q[Tile<head_dim>::steps];
#pragma unroll
  for (int step = 0; step < Tile<head_dim>::steps; ++step)
    q[step] = load_matrices<FragmentA>(
        (base + Shared<head_dim>::stage + warp * 16 * Tile<head_dim>::row_bytes + Tile<head_dim>::lane_a(lane)) ^
        (step << 5));

  FragmentC o[head_dim / 8] = {};
  Softmax state;
  const float scale_log2 = a.scale * log2_e;
  const int visible[2] = {rows.visible[row0], rows.visible[row0 + 8]};
  // Of the warp's rows the first sees least, the last real one most.
  const int least = rows.visible[warp * 16], most = warp * 16 < count ? rows.visible[warp * 16 + 15] : 0;
  for (int i = 0; i < tiles; ++i) {
    const int key0 = i * tile_size;
    const uint32_t stage = base + i % 2 * Shared<head_dim>::stage;
    wait_copies<0>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (i + 1 < tiles) copy.start(base + (i + 1) % 2 * Shared<head_dim>::stage, key0 + tile_size);
    if (key0 >= most) continue;
    FragmentC s[8];
    multiply_transposed<head_dim>([&](int step) { return q[step]; }, stage + Tile<head_dim>::lane_b(lane), s);
    if (key0 + tile_size > least) {
      const int first = key0 + lane % 4 * 2, seen[2] = {visible[0] - first, visible[1] - first};
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (n * 8 + e % 2 >= seen[e / 2]) s[n].x[e] = -INFINITY;
    }
    raise_top<head_dim>(s, scale_log2, state, o);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n].x[e] = exp2_approx(fmaf(s[n].x[e], scale_log2, -state.top[e / 2]));
        state.sum[e / 2] += s[n].x[e];
      }
    const FragmentA p[4] = {as_a(s[0], s[1]), as_a(s[2], s[3]), as_a(s[4], s[5]), as_a(s[6], s[7])};
    multiply_add<head_dim>(p, stage + Tile<head_dim>::bytes + Tile<head_dim>::lane_a(lane), o);
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(all_lanes, sum, 1);
    sum += __shfl_xor_sync(all_lanes, sum, 2);
    inverse[r] = 1.0f / sum;
    if (lane % 4 == 0 && row0 + 8 * r < count) a.lse[rows.ids[row0 + 8 * r]] = (state.top[r] + __log2f(sum)) * ln_2;
  }
  __syncthreads();  // the tiles are free
  char* const own = shared + warp * 16 * Tile<head_dim>::row_bytes;
  put_rows<head_dim>(own, o, inverse[0], inverse[1]);
  __syncwarp();
  store_rows<head_dim>(own, count - warp * 16,
                       [&](int row) { return a.o + rows.ids[warp * 16 + row] * int64_t{head_dim}; });
}

template <int head_dim>
void launch(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan) {
  static const bool allowed = (allow_shared_memory(attention_forward_kernel<head_dim>, Shared<head_dim>::bytes), true);
  static_cast<void>(allowed);
  attention_forward_kernel<head_dim>
      <<<plan.query_tile_count * a.heads, attention_threads, Shared<head_dim>::bytes, native(stream)>>>(a);
  check_launch("attention_forward_kernel");
}

}  // namespace

void attention_fast(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan) {
  a.head_dim == 64 ? launch<64>(stream, a, plan) : launch<128>(stream, a, plan);
}

}  // namespace notellm::gpu

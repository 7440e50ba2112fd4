// What InfoNCE's forward and backward pass share on CUDA: a tile of cosines in a block's registers, and its mask.
//
// A block goes over tiles of 128 × 64 cosines. The 128 vectors ("outer") are the block's own, the 64 ("inner") move on.
// Products are f32 FMAs: tensor cores would round the vectors to 10 bits, and e^tau = 100 multiplies that. A thread has
// 8 × 4 of them in registers, 32 FMAs for three 16-byte reads of shared memory.
#pragma once

#include <cmath>

#include "kernels/cuda_common.cuh"
#include "kernels/infonce.h"

namespace notellm::gpu::infonce_detail {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;
constexpr int outer_rows = 128, inner_rows = 64;
constexpr int outer_per_thread = 8, inner_per_thread = 4;
constexpr int depth = 8;  // coordinates in shared memory at a time
// Padded, so that the transposing writes of a warp (16 vectors × 8 coordinates) go to different banks.
constexpr int outer_stride = outer_rows + 4, inner_stride = inner_rows + 4;

// As many blocks as run at once on the largest GPU (2 on each of 132 multiprocessors), whatever GPU it is: the order of
// sums, and so the bits, depend on the shapes alone.
constexpr int64_t most_blocks = 264;

constexpr float minus_infinity = -__builtin_huge_valf();

struct Problem {
  const float *z_rows, *z_all;
  const float* log_q;  // or null
  const int32_t *mask_begin, *mask_columns;
  int rows, cols, d, first_row;
  float factor;  // e^tau

  __device__ int positive(int row) const { return (first_row + row) ^ 1; }
  __device__ float log_q_of(int column) const { return log_q && column < cols ? log_q[column] : 0.0f; }
  // One rounding, so that forward and backward get the same bits.
  __device__ float logit(float cosine, float log_q) const { return fmaf(cosine, factor, -log_q); }
};

inline Problem problem(Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
                       Tensor mask_columns) {
  return {z_rows.as<float>(),
          z_all.as<float>(),
          log_q.empty() ? nullptr : log_q.as<float>(),
          mask_begin.as<int32_t>(),
          mask_columns.as<int32_t>(),
          static_cast<int>(z_rows.rows()),
          static_cast<int>(z_all.rows()),
          static_cast<int>(z_all.cols()),
          static_cast<int>(first_row),
          std::exp(tau)};
}

// How the inner tiles are shared: block (x, y) has outer tile x and inner tiles [y·per_split, (y + 1)·per_split).
struct Split {
  int64_t outer_tiles, per_split, splits;
  dim3 grid() const { return dim3(static_cast<unsigned>(outer_tiles), static_cast<unsigned>(splits)); }
};
// What `splits` blocks keep of their outer tiles is bounded by that of most_blocks tiles.
inline Split split(int64_t outer, int64_t inner) {
  const int64_t outer_tiles = ceil_div(outer, outer_rows), inner_tiles = ceil_div(inner, inner_rows);
  const int64_t room = outer_tiles == 0 ? 1 : most_blocks / outer_tiles;
  const int64_t wanted = room < 1 ? 1 : room < inner_tiles ? room : inner_tiles;
  const int64_t per_split = wanted == 0 ? 0 : ceil_div(inner_tiles, wanted);
  return {outer_tiles, per_split, per_split == 0 ? 0 : ceil_div(inner_tiles, per_split)};
}

// The block's part of two matrices, k-major and double-buffered: one barrier for each step of `depth`.
struct Stage {
  alignas(16) float outer[2][depth * outer_stride];
  alignas(16) float inner[2][depth * inner_stride];
};

// The thread's place in a tile: outer 4·y … 4·y + 3 and 64 + 4·y …, inner 4·x … 4·x + 3.
__device__ inline int thread_x() { return threadIdx.x % 16; }
__device__ inline int thread_y() { return threadIdx.x / 16; }
__device__ inline int outer_of(int o) { return o / 4 * (outer_rows / 2) + thread_y() * 4 + o % 4; }
__device__ inline int inner_of(int i) { return thread_x() * inner_per_thread + i; }

// Four elements of a row; 0 beyond the matrix.
template <bool packs>
__device__ Pack<float> load4(const float* matrix, int rows, int cols, int row, int column) {
  Pack<float> result = {};
  if (row >= rows) return result;
  const float* from = matrix + static_cast<int64_t>(row) * cols + column;
  if constexpr (packs) {
    if (column < cols) result = load_pack(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + i < cols) result.x[i] = from[i];
  }
  return result;
}

// products[o][i] += Σ_k outer[k][o]·inner[k][i] over one step of `depth`.
__device__ inline void multiply(const float* outer, const float* inner,
                                float (&products)[outer_per_thread][inner_per_thread]) {
#pragma unroll
  for (int k = 0; k < depth; ++k) {
    const Pack<float> low = load_pack(outer + k * outer_stride + thread_y() * 4);
    const Pack<float> high = load_pack(outer + k * outer_stride + outer_rows / 2 + thread_y() * 4);
    const Pack<float> right = load_pack(inner + k * inner_stride + thread_x() * 4);
#pragma unroll
    for (int o = 0; o < outer_per_thread; ++o)
#pragma unroll
      for (int i = 0; i < inner_per_thread; ++i)
        products[o][i] = fmaf(o < 4 ? low.x[o % 4] : high.x[o % 4], right.x[i], products[o][i]);
  }
}

__device__ inline void store_transposed(float* to, int stride, int row, int column, const Pack<float>& pack) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[(column + i) * stride + row] = pack.x[i];
}

// cosines[o][i] = outer vector o · inner vector i, summed in the order of coordinates: the same bits whichever of two
// vectors is the outer one. The stage must be free; it is in use until the next barrier.
template <bool packs>
__device__ void multiply_vectors(const float* outer, int outer_count, int first_outer, const float* inner,
                                 int inner_count, int first_inner, int d, Stage& stage,
                                 float (&cosines)[outer_per_thread][inner_per_thread]) {
  // A warp reads 16 vectors × 8 coordinates: whole sectors.
  const int row = threadIdx.x / warp_size * 16 + threadIdx.x % 16, column = threadIdx.x % warp_size / 16 * 4;
  Pack<float> next_outer, next_inner;
  auto load = [&](int k) {
    next_outer = load4<packs>(outer, outer_count, d, first_outer + row, k + column);
    if (row < inner_rows) next_inner = load4<packs>(inner, inner_count, d, first_inner + row, k + column);
  };
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o)
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) cosines[o][i] = 0.0f;
  load(0);
  for (int k = 0, buffer = 0; k < d; k += depth, buffer ^= 1) {
    store_transposed(stage.outer[buffer], outer_stride, row, column, next_outer);
    if (row < inner_rows) store_transposed(stage.inner[buffer], inner_stride, row, column, next_inner);
    __syncthreads();
    if (k + depth < d) load(k + depth);
    multiply(stage.outer[buffer], stage.inner[buffer], cosines);
  }
}

// The place in mask_columns of the row's first masked column ≥ first; 0 for rows beyond the end.
__device__ inline int first_masked(const Problem& p, int row, int first) {
  if (row >= p.rows) return 0;
  int low = p.mask_begin[row], high = p.mask_begin[row + 1];
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (p.mask_columns[middle] < first)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// bits[words]: which of the columns [first, first + 32·words) are no negatives of the row: masked ones, its positive,
// those beyond the last; all of them for a row beyond the last. `next` as first_masked() says; returns it for the
// column behind.
template <int words>
__device__ int set_left_out(const Problem& p, int row, int first, int next, uint32_t* bits) {
  if (row >= p.rows) {
    for (int w = 0; w < words; ++w) bits[w] = all_lanes;
    return next;
  }
  for (int w = 0; w < words; ++w) {
    const int inside = p.cols - first - w * 32;
    bits[w] = inside >= 32 ? 0u : inside <= 0 ? all_lanes : all_lanes << inside;
  }
  auto set = [&](int column) { bits[column / 32] |= 1u << column % 32; };
  const int positive = p.positive(row) - first, end = p.mask_begin[row + 1];
  if (0 <= positive && positive < 32 * words) set(positive);
  for (; next < end; ++next) {
    const int column = p.mask_columns[next] - first;
    if (column >= 32 * words) break;
    set(column);
  }
  return next;
}

// The bits of four columns, 4·group …, of a row of `words` words.
template <int words>
__device__ uint32_t four_bits(const uint32_t* bits, int row, int group) {
  return bits[row * words + group / 8] >> (group % 8 * 4);
}

// z_i · z_pos(i), by a warp; the same bits in every lane.
__device__ inline float positive_cosine(const Problem& p, int row) {
  const float* own = p.z_rows + static_cast<int64_t>(row) * p.d;
  const float* other = p.z_all + static_cast<int64_t>(p.positive(row)) * p.d;
  float sum = 0.0f;
  for (int c = threadIdx.x % warp_size; c < p.d; c += warp_size) sum = fmaf(own[c], other[c], sum);
  return warp_sum(sum);
}

int64_t forward_workspace(int64_t rows, int64_t cols);                           // elements of f32
constexpr int64_t finish_blocks(int64_t rows) { return ceil_div(rows, warps); }  // of a kernel with a warp a row

}  // namespace notellm::gpu::infonce_detail

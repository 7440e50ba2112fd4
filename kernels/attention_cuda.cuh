// What the CUDA sources of attention share: the arguments as pointers, the rows of a tile of queries, and the tiles of
// bf16 in shared memory that the tensor cores read.
#pragma once

#include "kernels/attention_plan.h"
#include "kernels/cuda_common.cuh"
#include "kernels/cuda_mma.cuh"

namespace notellm::gpu {

using attention_detail::GpuPlan;
using attention_detail::KeyItem;
using attention_detail::KeySum;
using attention_detail::QueryTile;
using attention_detail::tile_size;

constexpr int attention_threads = 128;
constexpr int attention_warps = attention_threads / warp_size;
constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// Pointers of the backward pass are null in the forward pass. A row of q, o, dq, d_o, lse and d is a query's head:
// query · heads + head; it has head_dim elements in the first four, one in the others.
template <class T>
struct AttentionArguments {
  const int32_t* query_tokens;
  const int32_t* lists;
  const QueryTile* query_tiles;
  const KeyItem* key_items;
  const KeySum* key_sums;
  int heads, kv_heads, group, head_dim;
  float scale;
  const T *q, *kv;
  T* o;
  float* lse;
  const T* d_o;
  float* d;         // [queries, heads] D, which dq's kernel writes and that of dk and dv reads
  float* partials;  // [rows, 2·kv_heads·head_dim]
  T *dq, *dkv;

  __device__ int64_t kv_width() const { return int64_t{2} * kv_heads * head_dim; }
};

// The kernels of one pass, enqueued. `fast` is for head_dim 64 and 128.
void attention_fast(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan);
void attention_backward_fast(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan);
template <class T>
void attention_plain(Stream& stream, const AttentionArguments<T>& a, const GpuPlan& plan);
template <class T>
void attention_backward_plain(Stream& stream, const AttentionArguments<T>& a, const GpuPlan& plan);

// Dynamic shared memory beyond 48 KiB is given only to kernels that ask.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
}

// A tile in shared memory: rows of head_dim bf16, their 16-byte chunks permuted within 8 (chunk c of row r stands at
// c ^ (r % 8)), so that neither 8 rows of a chunk nor 8 chunks of a row meet in a bank. Tiles begin at multiples of
// their row's bytes.
template <int head_dim>
struct Tile {
  static constexpr int row_bytes = head_dim * 2, chunks = head_dim / 8, bytes = tile_size * row_bytes;
  static constexpr int steps = head_dim / 16;  // of 16 columns

  __device__ static uint32_t at(int row, int chunk) { return row * row_bytes + ((chunk ^ (row % 8)) << 4); }
  // Where a lane's address for load_matrices is in a block of 16 rows, first 16 columns. Those of step i are at
  // `address ^ (i << 5)`, those of the next 16 rows at `address + 16 · row_bytes`.
  // 16 × 16 as A; transposed as two B whose rows are the tile's: the block's rows 0–7 and 8–15, then its other columns.
  __device__ static uint32_t lane_a(int lane) { return at(lane % 16, lane / 16); }
  // As two B whose columns are the tile's rows: the other columns first.
  __device__ static uint32_t lane_b(int lane) { return at(lane % 8 + lane / 16 * 8, lane / 8 % 2); }
};

// How the block's threads copy rows into a tile: each takes one chunk of `first`, `first + step` ….
template <int head_dim>
struct RowCopy {
  static constexpr int step = attention_threads / Tile<head_dim>::chunks;  // a multiple of 8: same permutation
  int first = threadIdx.x / Tile<head_dim>::chunks, chunk = threadIdx.x % Tile<head_dim>::chunks;
  static constexpr int step_bytes = step * Tile<head_dim>::row_bytes;
  __device__ uint32_t to() const { return Tile<head_dim>::at(first, chunk); }  // of the first; the others follow
};

// The rows of a block of queries: of a tile's queries × the heads of one kv head, in this order, the block's 64. Rows
// beyond the last are the last once more.
struct BlockRows {
  int ids[tile_size];      // row of q
  int visible[tile_size];  // keys that it sees: the first so many of its segment
};
// The block's part of `tile`: false when it has none. Keeps the first 64 threads busy; a barrier has to follow.
template <class T>
__device__ bool fill_block_rows(const AttentionArguments<T>& a, const QueryTile& tile, int head, BlockRows& rows,
                                int& count) {
  const int first = head % a.group * tile_size, all = (tile.query_end - tile.query_begin) * a.group;
  count = min(tile_size, all - first);
  if (count <= 0) return false;
  if (threadIdx.x < tile_size) {
    const int row = first + min(static_cast<int>(threadIdx.x), count - 1);
    const int query = tile.query_begin + row / a.group;
    rows.ids[threadIdx.x] = query * a.heads + head / a.group * a.group + row % a.group;
    rows.visible[threadIdx.x] = tile.prefix_count + a.query_tokens[query] - tile.own_begin + 1;
  }
  return true;
}

// Copies keys key0 … key0 + 63 of a tile's queries, and their values; the last one again where there are no more.
template <int head_dim>
struct KeyCopy {
  RowCopy<head_dim> copy;
  const char* keys;  // chunk of token 0
  int64_t to_values;
  int row_bytes, prefix_begin, prefix_count, own_shift, last;

  __device__ KeyCopy(const AttentionArguments<bf16>& a, const QueryTile& tile, int kv_head, int last)
      : keys(reinterpret_cast<const char*>(a.kv + kv_head * head_dim + copy.chunk * 8)),
        to_values(int64_t{a.kv_heads} * Tile<head_dim>::row_bytes),
        row_bytes(2 * a.kv_heads * Tile<head_dim>::row_bytes),
        prefix_begin(tile.prefix_begin),
        prefix_count(tile.prefix_count),
        own_shift(tile.own_begin - tile.prefix_count),
        last(last) {}
  __device__ void start(uint32_t tile, int key0) const {
    const uint32_t to = tile + copy.to();
    const int first = key0 + copy.first;
    unrolled<tile_size / RowCopy<head_dim>::step>([&](auto index) {
      constexpr int i = decltype(index)::value, offset = i * RowCopy<head_dim>::step_bytes;
      const int key = min(first + i * copy.step, last), token = key + (key < prefix_count ? prefix_begin : own_shift);
      const char* from = keys + int64_t{token} * row_bytes;
      copy_async<offset>(to, from);
      copy_async<offset + Tile<head_dim>::bytes>(to, from + to_values);
    });
    commit_copies();
  }
};

// Copies the block's rows of q, o …, which has rows of head_dim.
template <int head_dim>
__device__ void copy_rows(uint32_t tile, const bf16* from, const BlockRows& rows) {
  const RowCopy<head_dim> copy;
  unrolled<tile_size / RowCopy<head_dim>::step>([&](auto index) {
    constexpr int i = decltype(index)::value;
    copy_async<i * RowCopy<head_dim>::step_bytes>(
        tile + copy.to(), from + rows.ids[copy.first + i * copy.step] * int64_t{head_dim} + copy.chunk * 8);
  });
}

// s = a · bᵀ: a [16, head_dim], of which a(step) gives 16 columns, b the first 8·n rows of a tile; `rows_b` is the
// tile + lane_b.
template <int head_dim, int n, class A>
__device__ __forceinline__ void multiply_transposed(const A& a, uint32_t rows_b, FragmentC (&s)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) s[i] = {};
#pragma unroll
  for (int step = 0; step < Tile<head_dim>::steps; ++step) {
    const uint32_t address = rows_b ^ (step << 5);
    const FragmentA a_step = a(step);
    unrolled<n / 2>([&](auto index) {
      constexpr int i = decltype(index)::value;
      const auto b = load_matrices<FragmentB2, i * 16 * Tile<head_dim>::row_bytes>(address);
      s[2 * i] = mma(a_step, b.x0, b.x1, s[2 * i]);
      s[2 * i + 1] = mma(a_step, b.x2, b.x3, s[2 * i + 1]);
    });
  }
}

// sum += p · b: p [16, 16·k] as A, b the first 16·k rows of a tile; `rows_b` is the tile + lane_a.
template <int head_dim, int k>
__device__ __forceinline__ void multiply_add(const FragmentA (&p)[k], uint32_t rows_b, FragmentC (&sum)[head_dim / 8]) {
#pragma unroll
  for (int step = 0; step < Tile<head_dim>::steps; ++step) {
    const uint32_t address = rows_b ^ (step << 5);
    unrolled<k>([&](auto index) {
      constexpr int i = decltype(index)::value;
      const auto b = load_matrices_transposed<FragmentB2, i * 16 * Tile<head_dim>::row_bytes>(address);
      sum[2 * step] = mma(p[i], b.x0, b.x1, sum[2 * step]);
      sum[2 * step + 1] = mma(p[i], b.x2, b.x3, sum[2 * step + 1]);
    });
  }
}

// Two results of 16 × 8 side by side are an A of 16 × 16, rounded to bf16.
__device__ inline FragmentA as_a(const FragmentC& left, const FragmentC& right) {
  return {pack_bf16(left.x[0], left.x[1]), pack_bf16(left.x[2], left.x[3]), pack_bf16(right.x[0], right.x[1]),
          pack_bf16(right.x[2], right.x[3])};
}

// A warp's 16 rows, x times `factor` of a lane's two rows, rounded, into a tile's first 16 rows.
template <int head_dim>
__device__ void put_rows(char* tile, const FragmentC (&x)[head_dim / 8], float factor0, float factor1) {
  const int lane = threadIdx.x % warp_size, row = lane / 4, inside = lane % 4 * 4;
#pragma unroll
  for (int chunk = 0; chunk < head_dim / 8; ++chunk) {
    const uint32_t at = Tile<head_dim>::at(row, chunk) + inside;
    *reinterpret_cast<uint32_t*>(tile + at) = pack_bf16(x[chunk].x[0] * factor0, x[chunk].x[1] * factor0);
    *reinterpret_cast<uint32_t*>(tile + at + 8 * Tile<head_dim>::row_bytes) =
        pack_bf16(x[chunk].x[2] * factor1, x[chunk].x[3] * factor1);
  }
}
// The first `count` of a tile's first 16 rows to global memory, by a warp: row r to target(r).
template <int head_dim, class Target>
__device__ void store_rows(const char* tile, int count, const Target& target) {
  constexpr int chunks = Tile<head_dim>::chunks, rows_at_once = warp_size / chunks;
  const int lane = threadIdx.x % warp_size, chunk = lane % chunks;
#pragma unroll
  for (int i = 0; i < 16; i += rows_at_once) {
    const int row = i + lane / chunks;
    if (row < count)
      *reinterpret_cast<int4*>(target(row) + chunk * 8) =
          *reinterpret_cast<const int4*>(tile + Tile<head_dim>::at(row, chunk));
  }
}

}  // namespace notellm::gpu

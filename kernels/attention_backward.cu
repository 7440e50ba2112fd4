// The backward pass on tensor cores (FlashAttention-2, arXiv 2307.08691), without atomics: one kernel for dq, a block
// for 64 rows of queries over their keys; then one for dk and dv, a block for 64 keys over the rows that see them. Both
// compute P again.
#include <climits>
#include <cmath>

#include "kernels/attention_cuda.cuh"

namespace notellm::gpu {
namespace {

template <int head_dim>
struct QueryShared {
  static constexpr int stage = 2 * Tile<head_dim>::bytes;  // keys, values; at first the second stage is q, d_o
  static constexpr int rows = 2 * stage;                   // BlockRows
  static constexpr int d = rows + sizeof(BlockRows);       // [64] D of each row
  static constexpr int bytes = d + tile_size * sizeof(float);
};

// D of the warp's 16 rows, into shared and global memory.
template <int head_dim>
__device__ void row_products(const AttentionArguments<bf16>& a, const BlockRows& rows, int count, float* d) {
  constexpr int chunks = Tile<head_dim>::chunks, rows_at_once = warp_size / chunks;
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
#pragma unroll
  for (int i = 0; i < 16; i += rows_at_once) {
    const int row = warp * 16 + i + lane / chunks, id = rows.ids[row];
    const int64_t at = id * int64_t{head_dim} + lane % chunks * 8;
    const Pack<bf16> x = load_pack(a.d_o + at), y = load_pack<bf16>(a.o + at);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += to_float(x.x[k]) * to_float(y.x[k]);
#pragma unroll
    for (int other = chunks / 2; other > 0; other /= 2) sum += __shfl_xor_sync(all_lanes, sum, other);
    if (lane % chunks == 0) {
      d[row] = sum;
      if (row < count) a.d[id] = sum;
    }
  }
}

// dq = 0 for a tile of no segment, one head.
template <int head_dim>
__device__ void clear_queries(const AttentionArguments<bf16>& a, const QueryTile& tile, int head) {
  constexpr int chunks = Tile<head_dim>::chunks;
  for (int i = threadIdx.x; i < (tile.query_end - tile.query_begin) * chunks; i += attention_threads)
    *reinterpret_cast<int4*>(a.dq + ((tile.query_begin + i / chunks) * int64_t{a.heads} + head) * head_dim +
                             i % chunks * 8) = {};
}

template <int head_dim>
__global__ void __launch_bounds__(attention_threads) attention_dq_kernel(const AttentionArguments<bf16> a) {
  using Layout = QueryShared<head_dim>;
  using KeyTile = Tile<head_dim>;
  extern __shared__ __align__(256) char shared[];
  BlockRows& rows = *reinterpret_cast<BlockRows*>(shared + Layout::rows);
  float* const d_of_rows = reinterpret_cast<float*>(shared + Layout::d);
  const QueryTile tile = a.query_tiles[blockIdx.x / a.heads];
  const int head = blockIdx.x % a.heads;
  if (!tile.in_segment) return clear_queries<head_dim>(a, tile, head);
  int count;
  if (!fill_block_rows(a, tile, head, rows, count)) return;
  __syncthreads();

  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, row0 = warp * 16 + lane / 4;
  const int keys = rows.visible[tile_size - 1], tiles = (keys + tile_size - 1) / tile_size;
  const uint32_t base = shared_address(shared);
  const KeyCopy<head_dim> copy(a, tile, head / a.group, keys - 1);
  copy_rows<head_dim>(base + Layout::stage, a.q, rows);
  copy_rows<head_dim>(base + Layout::stage + KeyTile::bytes, a.d_o, rows);
  commit_copies();
  copy.start(base, 0);
  row_products<head_dim>(a, rows, count, d_of_rows);
  wait_copies<1>();
  __syncthreads();
  FragmentA q[KeyTile::steps], d_o[KeyTile::steps];
  const uint32_t own_rows = base + Layout::stage + warp * 16 * KeyTile::row_bytes + KeyTile::lane_a(lane);
#pragma unroll
  for (int step = 0; step < KeyTile::steps; ++step) {
    q[step] = load_matrices<FragmentA>(own_rows ^ (step << 5));
    d_o[step] = load_matrices<FragmentA>((own_rows ^ (step << 5)) + KeyTile::bytes);
  }

  FragmentC dq[head_dim / 8] = {};
  const float scale_log2 = a.scale * log2_e;
  const int visible[2] = {rows.visible[row0], rows.visible[row0 + 8]};
  const float d[2] = {d_of_rows[row0], d_of_rows[row0 + 8]};
  const float lse[2] = {a.lse[rows.ids[row0]] * log2_e, a.lse[rows.ids[row0 + 8]] * log2_e};
  const int least = rows.visible[warp * 16], most = warp * 16 < count ? rows.visible[warp * 16 + 15] : 0;
  for (int i = 0; i < tiles; ++i) {
    wait_copies<0>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (i + 1 < tiles) copy.start(base + (i + 1) % 2 * Layout::stage, (i + 1) * tile_size);
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 32 keys at a time: fewer registers
      const int key0 = i * tile_size + half * 32;
      if (key0 >= most) continue;
      const uint32_t k = base + i % 2 * Layout::stage + half * 32 * KeyTile::row_bytes, v = k + KeyTile::bytes;
      FragmentC s[4], dp[4];
      multiply_transposed<head_dim>([&](int step) { return q[step]; }, k + KeyTile::lane_b(lane), s);
      multiply_transposed<head_dim>([&](int step) { return d_o[step]; }, v + KeyTile::lane_b(lane), dp);
      if (key0 + 32 > least) {
        const int first = key0 + lane % 4 * 2, seen[2] = {visible[0] - first, visible[1] - first};
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (n * 8 + e % 2 >= seen[e / 2]) s[n].x[e] = -INFINITY;
      }
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[n].x[e] = exp2_approx(fmaf(s[n].x[e], scale_log2, -lse[e / 2])) * (dp[n].x[e] - d[e / 2]);
      const FragmentA ds[2] = {as_a(s[0], s[1]), as_a(s[2], s[3])};
      multiply_add<head_dim>(ds, k + KeyTile::lane_a(lane), dq);
    }
  }
  __syncthreads();  // the tiles are free
  char* const own = shared + warp * 16 * KeyTile::row_bytes;
  put_rows<head_dim>(own, dq, a.scale, a.scale);
  __syncwarp();
  store_rows<head_dim>(own, count - warp * 16,
                       [&](int row) { return a.dq + rows.ids[warp * 16 + row] * int64_t{head_dim}; });
}

constexpr int item_rows = 32;  // rows of queries that are in shared memory together

template <int head_dim>
struct KeyShared {
  static constexpr int row_tile = Tile<head_dim>::bytes * item_rows / tile_size;
  static constexpr int rows = 2 * Tile<head_dim>::bytes;               // behind keys and values
  static constexpr int stage = 2 * row_tile;                           // q, d_o
  static constexpr int numbers = rows + 2 * stage;                     // behind both stages
  static constexpr int numbers_stage = 2 * item_rows * sizeof(float);  // lse, D
  static constexpr int bytes = numbers + 2 * numbers_stage;
};

// A row of an item: its rows are its queries × the heads of one kv head, in this order. advance() goes on by item_rows
// rows, without a division.
struct ItemRow {
  int position, head;  // in the list; in the group
  __device__ void set(int row, int group) {
    position = row / group;
    head = row % group;
  }
  __device__ void advance(int group, int whole, int rest) {  // item_rows = whole · group + rest
    position += whole;
    head += rest;
    if (head >= group) {
      head -= group;
      ++position;
    }
  }
};

// Copies q, d_o, lse and D of an item's next item_rows rows. Behind the last query it is copied again. Where the rows
// are is looked up a call ahead, so that no copy waits for it.
template <int head_dim>
struct ItemRowCopy {
  using Layout = KeyShared<head_dim>;
  static constexpr int copies = item_rows / RowCopy<head_dim>::step;
  RowCopy<head_dim> copy;
  const bf16 *q, *d_o;
  const float* numbers;  // lse for the first 32 threads, D for the next, null for the others
  const int32_t* list;
  int last, heads, first_head, group, whole, rest;
  ItemRow rows[copies], number_row;
  int ids[copies], number_id;

  __device__ ItemRowCopy(const AttentionArguments<bf16>& a, const KeyItem& item, int kv_head)
      : q(a.q + copy.chunk * 8),
        d_o(a.d_o + copy.chunk * 8),
        numbers(threadIdx.x < item_rows       ? a.lse
                : threadIdx.x < 2 * item_rows ? a.d
                                              : nullptr),
        list(a.lists + item.list_begin),
        last(item.list_end - item.list_begin - 1),
        heads(a.heads),
        first_head(kv_head * a.group),
        group(a.group),
        whole(item_rows / a.group),
        rest(item_rows % a.group) {
#pragma unroll
    for (int i = 0; i < copies; ++i) rows[i].set(copy.first + i * copy.step, group);
    number_row.set(threadIdx.x % item_rows, group);
    look_up();
  }
  __device__ int next_id(ItemRow& row) {
    const int id = list[min(row.position, last)] * heads + first_head + row.head;
    row.advance(group, whole, rest);
    return id;
  }
  __device__ void look_up() {
#pragma unroll
    for (int i = 0; i < copies; ++i) ids[i] = next_id(rows[i]);
    number_id = next_id(number_row);
  }
  __device__ void start(uint32_t shared, int stage) {
    const uint32_t to = shared + Layout::rows + stage * Layout::stage + copy.to();
    unrolled<copies>([&](auto index) {
      constexpr int i = decltype(index)::value, offset = i * RowCopy<head_dim>::step_bytes;
      const int64_t at = int64_t{ids[i]} * head_dim;
      copy_async<offset>(to, q + at);
      copy_async<offset + Layout::row_tile>(to, d_o + at);
    });
    if (numbers)
      copy_async_4(shared + Layout::numbers + stage * Layout::numbers_stage + threadIdx.x * sizeof(float),
                   numbers + number_id);
    commit_copies();
    look_up();
  }
};

// Copies the item's keys and values; the last one again up to 64.
template <int head_dim>
__device__ void copy_item_keys(uint32_t shared, const AttentionArguments<bf16>& a, const KeyItem& item, int kv_head) {
  const RowCopy<head_dim> copy;
  unrolled<tile_size / RowCopy<head_dim>::step>([&](auto index) {
    constexpr int i = decltype(index)::value, offset = i * RowCopy<head_dim>::step_bytes;
    const int token = min(item.key_begin + copy.first + i * copy.step, item.key_end - 1);
    const bf16* from = a.kv + token * a.kv_width() + kv_head * head_dim + copy.chunk * 8;
    copy_async<offset>(shared + copy.to(), from);
    copy_async<offset + Tile<head_dim>::bytes>(shared + copy.to(), from + a.kv_heads * head_dim);
  });
}

// Scores that are not to count: of rows behind the item's last, and of the first `masked` queries for keys behind them.
__device__ __forceinline__ void mask_item(const AttentionArguments<bf16>& a, const KeyItem& item, int row0, int token,
                                          FragmentC (&s)[item_rows / 8]) {
#pragma unroll
  for (int n = 0; n < item_rows / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int position = (row0 + n * 8 + e) / a.group, at = item.list_begin + position;
      int limit = -1;  // the last token whose key counts
      if (at < item.list_end) limit = position < item.masked ? a.query_tokens[a.lists[at]] : INT_MAX;
      if (token > limit) s[n].x[e] = -INFINITY;
      if (token + 8 > limit) s[n].x[e + 2] = -INFINITY;
    }
}

// The item's first rows that see no key from `key` on, for a warp whose keys begin there; they belong to fewer than
// tile_size queries, those of the keys before.
__device__ __forceinline__ int rows_before(const AttentionArguments<bf16>& a, const KeyItem& item, int key) {
  int queries = 0;
  for (int first = 0; first < key - item.key_begin; first += warp_size) {
    const int position = first + static_cast<int>(threadIdx.x % warp_size);
    const bool before = position < item.masked && a.query_tokens[a.lists[item.list_begin + position]] < key;
    queries += __popc(__ballot_sync(all_lanes, before));
  }
  return queries * a.group;
}

// A warp's dk or dv of 16 keys, times `factor`: into dkv, or for keys of several items into their partial sums.
template <int head_dim>
__device__ void store_keys(const AttentionArguments<bf16>& a, const KeyItem& item, int key0, int offset, char* tile,
                           const FragmentC (&x)[head_dim / 8], float factor) {
  const int lane = threadIdx.x % warp_size, count = item.key_end - item.key_begin - key0;
  if (item.row < 0) {
    put_rows<head_dim>(tile, x, factor, factor);
    __syncwarp();
    store_rows<head_dim>(tile, count,
                         [&](int row) { return a.dkv + (item.key_begin + key0 + row) * a.kv_width() + offset; });
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    if (row >= count) continue;
    float* const to = a.partials + (item.row + key0 + row) * a.kv_width() + offset + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < head_dim / 8; ++n)
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(x[n].x[2 * r] * factor, x[n].x[2 * r + 1] * factor);
  }
}

// P and dS of a warp's 16 keys for a tile of rows, as A of the products that sum dv and dk.
template <int head_dim>
__device__ __forceinline__ void item_tile(const AttentionArguments<bf16>& a, const KeyItem& item, int row0,
                                          uint32_t own_keys, uint32_t rows, const float* numbers, FragmentA (&p)[2],
                                          FragmentA (&ds)[2]) {
  using KeyTile = Tile<head_dim>;
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  const float scale_log2 = a.scale * log2_e;
  FragmentC s[item_rows / 8], dp[item_rows / 8];
  multiply_transposed<head_dim>([&](int step) { return load_matrices<FragmentA>(own_keys ^ (step << 5)); },
                                rows + KeyTile::lane_b(lane), s);
  if (row0 < item.masked * a.group || row0 + item_rows > (item.list_end - item.list_begin) * a.group)
    mask_item(a, item, row0 + lane % 4 * 2, item.key_begin + warp * 16 + lane / 4, s);
  multiply_transposed<head_dim>(
      [&](int step) { return load_matrices<FragmentA, KeyTile::bytes>(own_keys ^ (step << 5)); },
      rows + KeyShared<head_dim>::row_tile + KeyTile::lane_b(lane), dp);
#pragma unroll
  for (int n = 0; n < item_rows / 8; ++n) {
    const float2 lse = *reinterpret_cast<const float2*>(numbers + n * 8 + lane % 4 * 2),
                 d = *reinterpret_cast<const float2*>(numbers + item_rows + n * 8 + lane % 4 * 2);
    const float log2_sum[2] = {lse.x * log2_e, lse.y * log2_e}, d_of[2] = {d.x, d.y};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[n].x[e] = exp2_approx(fmaf(s[n].x[e], scale_log2, -log2_sum[e % 2]));
      dp[n].x[e] = s[n].x[e] * (dp[n].x[e] - d_of[e % 2]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    p[i] = as_a(s[2 * i], s[2 * i + 1]);
    ds[i] = as_a(dp[2 * i], dp[2 * i + 1]);
  }
}

template <int head_dim>
__global__ void __launch_bounds__(attention_threads, head_dim == 64 ? 3 : 2)
    attention_dkv_kernel(const AttentionArguments<bf16> a) {
  using Layout = KeyShared<head_dim>;
  using KeyTile = Tile<head_dim>;
  extern __shared__ __align__(256) char shared[];
  const KeyItem item = a.key_items[blockIdx.x / a.kv_heads];
  const int kv_head = blockIdx.x % a.kv_heads;
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, key0 = warp * 16;
  const int rows = (item.list_end - item.list_begin) * a.group, tiles = (rows + item_rows - 1) / item_rows;
  const uint32_t base = shared_address(shared);
  FragmentC dk[head_dim / 8] = {}, dv[head_dim / 8] = {};
  if (tiles > 0) {
    copy_item_keys<head_dim>(base, a, item, kv_head);
    ItemRowCopy<head_dim> copy(a, item, kv_head);
    copy.start(base, 0);
    const uint32_t own_keys = base + key0 * KeyTile::row_bytes + KeyTile::lane_a(lane);
    const int key = item.key_begin + key0, unseeing = key < item.key_end ? rows_before(a, item, key) : INT_MAX;
    for (int i = 0; i < tiles; ++i) {
      wait_copies<0>();
      __syncthreads();  // the rows are there for all, and nobody reads those before them any more
      if (i + 1 < tiles) copy.start(base, (i + 1) % 2);
      if ((i + 1) * item_rows <= unseeing) continue;
      const uint32_t tile = base + Layout::rows + i % 2 * Layout::stage;
      const auto* numbers = reinterpret_cast<const float*>(shared + Layout::numbers + i % 2 * Layout::numbers_stage);
      FragmentA p[2], ds[2];
      item_tile<head_dim>(a, item, i * item_rows, own_keys, tile, numbers, p, ds);
      multiply_add<head_dim>(p, tile + Layout::row_tile + KeyTile::lane_a(lane), dv);
      multiply_add<head_dim>(ds, tile + KeyTile::lane_a(lane), dk);
    }
  }
  // Nobody but the warp reads its own keys and values in shared memory: their place is free.
  char* const own = shared + key0 * KeyTile::row_bytes;
  __syncwarp();
  store_keys<head_dim>(a, item, key0, kv_head * head_dim, own, dk, a.scale);
  store_keys<head_dim>(a, item, key0, (a.kv_heads + kv_head) * head_dim, own + KeyTile::bytes, dv, 1.0f);
}

template <int head_dim>
void launch(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan) {
  constexpr int query_bytes = QueryShared<head_dim>::bytes, key_bytes = KeyShared<head_dim>::bytes;
  static const bool allowed = (allow_shared_memory(attention_dq_kernel<head_dim>, query_bytes),
                               allow_shared_memory(attention_dkv_kernel<head_dim>, key_bytes), true);
  static_cast<void>(allowed);
  if (plan.query_tile_count > 0) {
    attention_dq_kernel<head_dim>
        <<<plan.query_tile_count * a.heads, attention_threads, query_bytes, native(stream)>>>(a);
    check_launch("attention_dq_kernel");
  }
  attention_dkv_kernel<head_dim><<<plan.key_item_count * a.kv_heads, attention_threads, key_bytes, native(stream)>>>(a);
  check_launch("attention_dkv_kernel");
}

}  // namespace

void attention_backward_fast(Stream& stream, const AttentionArguments<bf16>& a, const GpuPlan& plan) {
  a.head_dim == 64 ? launch<64>(stream, a, plan) : launch<128>(stream, a, plan);
}

}  // namespace notellm::gpu

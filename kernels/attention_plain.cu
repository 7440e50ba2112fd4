// Attention for f32 and for head sizes that the tensor core kernels do not have: a warp has a query's head, or a key,
// and goes over what it sees 32 at a time, a lane each.
#include <cmath>

#include "kernels/attention_cuda.cuh"

namespace notellm::gpu {
namespace {

// A warp's own shared memory: `vectors` of head_dim and three numbers for each lane.
struct WarpMemory {
  float* vectors;
  int head_dim;
  float *first, *second;  // [32]: weights of the 32 rows
  int* rows;              // [32]: which rows they are

  __device__ WarpMemory(int count, int head_dim) : head_dim(head_dim) {
    extern __shared__ float shared[];
    vectors = shared + threadIdx.x / warp_size * (count * head_dim + 3 * warp_size);
    first = vectors + count * head_dim;
    second = first + warp_size;
    rows = reinterpret_cast<int*>(second + warp_size);
  }
  __device__ float* vector(int i) const { return vectors + i * head_dim; }
};
int shared_bytes(int count, int head_dim) {
  return attention_warps * (count * head_dim + 3 * warp_size) * static_cast<int>(sizeof(float));
}

// exp(x) to some 2^-22 of itself, also far from 0: what the product with log2 e loses is put back. 0 for −inf.
__device__ float exponential(float x) {
  if (x < -200) x = -200;
  const float power = x * log2_e, lost = fmaf(x, log2_e, -power);
  return exp2_approx(power) * fmaf(lost, ln_2, 1.0f);
}

template <class T>
__device__ float dot(const float* x, const T* y, int n) {
  float sum = 0;
  for (int c = 0; c < n; ++c) sum += x[c] * to_float(y[c]);
  return sum;
}

// x := fade · x + Σ_j weights[j] · row(j) over `count` rows, a lane every 32nd element.
template <class Row>
__device__ void add_rows(float* x, int n, float fade, const float* weights, int count, const Row& row) {
  for (int c = threadIdx.x % warp_size; c < n; c += warp_size) {
    float sum = fade * x[c];
    for (int j = 0; j < count; ++j) sum += weights[j] * to_float(row(j)[c]);
    x[c] = sum;
  }
}

template <class T>
__device__ void load_row(float* to, const T* from, float factor, int n) {
  for (int c = threadIdx.x % warp_size; c < n; c += warp_size) to[c] = to_float(from[c]) * factor;
}
template <class T>
__device__ void store_row(T* to, const float* from, float factor, int n) {
  for (int c = threadIdx.x % warp_size; c < n; c += warp_size) to[c] = from_float<T>(from[c] * factor);
}
__device__ void clear_row(float* to, int n) {
  for (int c = threadIdx.x % warp_size; c < n; c += warp_size) to[c] = 0;
}

__device__ int key_token(const QueryTile& tile, int key) {
  return key < tile.prefix_count ? tile.prefix_begin + key : tile.own_begin + key - tile.prefix_count;
}

template <class T>
__global__ void __launch_bounds__(attention_threads, 4) attention_plain_kernel(const AttentionArguments<T> a) {
  const QueryTile tile = a.query_tiles[blockIdx.x / a.heads];
  if (!tile.in_segment) return;
  const int head = blockIdx.x % a.heads, n = a.head_dim, lane = threadIdx.x % warp_size;
  const WarpMemory memory(2, n);
  float *const q = memory.vector(0), *const o = memory.vector(1);
  const T* const keys = a.kv + head / a.group * n;
  const T* const values = keys + a.kv_heads * n;
  for (int query = tile.query_begin + threadIdx.x / warp_size; query < tile.query_end; query += attention_warps) {
    const int64_t id = int64_t{query} * a.heads + head;
    const int visible = tile.prefix_count + a.query_tokens[query] - tile.own_begin + 1;
    load_row(q, a.q + id * n, a.scale, n);
    clear_row(o, n);
    float max = -INFINITY, sum = 0;
    for (int key0 = 0; key0 < visible; key0 += warp_size) {
      const int64_t token = key_token(tile, min(key0 + lane, visible - 1));
      __syncwarp();
      const float score = key0 + lane < visible ? dot(q, keys + token * a.kv_width(), n) : -INFINITY;
      const float new_max = fmaxf(max, warp_max(score)), fade = exponential(max - new_max),
                  p = exponential(score - new_max);
      max = new_max;
      sum = sum * fade + warp_sum(p);
      memory.first[lane] = p;
      memory.rows[lane] = static_cast<int>(token);
      __syncwarp();
      add_rows(o, n, fade, memory.first, min(warp_size, visible - key0),
               [&](int j) { return values + memory.rows[j] * a.kv_width(); });
    }
    store_row(a.o + id * n, o, 1.0f / sum, n);
    if (lane == 0) a.lse[id] = max + logf(sum);
    __syncwarp();
  }
}

template <class T>
__global__ void __launch_bounds__(attention_threads, 4) attention_plain_dq_kernel(const AttentionArguments<T> a) {
  const QueryTile tile = a.query_tiles[blockIdx.x / a.heads];
  const int head = blockIdx.x % a.heads, n = a.head_dim, lane = threadIdx.x % warp_size;
  const WarpMemory memory(3, n);
  float *const q = memory.vector(0), *const d_o = memory.vector(1), *const dq = memory.vector(2);
  const T* const keys = a.kv + head / a.group * n;
  const T* const values = keys + a.kv_heads * n;
  for (int query = tile.query_begin + threadIdx.x / warp_size; query < tile.query_end; query += attention_warps) {
    const int64_t id = int64_t{query} * a.heads + head;
    clear_row(dq, n);
    if (tile.in_segment) {
      const int visible = tile.prefix_count + a.query_tokens[query] - tile.own_begin + 1;
      load_row(q, a.q + id * n, a.scale, n);
      load_row(d_o, a.d_o + id * n, 1.0f, n);
      float products = 0;
      for (int c = lane; c < n; c += warp_size) products += d_o[c] * to_float(a.o[id * n + c]);
      const float d = warp_sum(products), lse = a.lse[id];
      if (lane == 0) a.d[id] = d;
      for (int key0 = 0; key0 < visible; key0 += warp_size) {
        const int64_t token = key_token(tile, min(key0 + lane, visible - 1)), at = token * a.kv_width();
        __syncwarp();
        memory.first[lane] = exponential(dot(q, keys + at, n) - lse) * (dot(d_o, values + at, n) - d);
        memory.rows[lane] = static_cast<int>(token);
        __syncwarp();
        add_rows(dq, n, 1.0f, memory.first, min(warp_size, visible - key0),
                 [&](int j) { return keys + memory.rows[j] * a.kv_width(); });
      }
    }
    store_row(a.dq + id * n, dq, a.scale, n);
    __syncwarp();
  }
}

// dk and dv of an item's keys, a warp every fourth; rows are its queries × the heads of one kv head.
template <class T>
__global__ void __launch_bounds__(attention_threads, 4) attention_plain_dkv_kernel(const AttentionArguments<T> a) {
  const KeyItem item = a.key_items[blockIdx.x / a.kv_heads];
  const int kv_head = blockIdx.x % a.kv_heads, n = a.head_dim, lane = threadIdx.x % warp_size;
  const int rows = (item.list_end - item.list_begin) * a.group;
  const WarpMemory memory(4, n);
  float *const k = memory.vector(0), *const v = memory.vector(1), *const dk = memory.vector(2),
               *const dv = memory.vector(3);
  for (int key = item.key_begin + threadIdx.x / warp_size; key < item.key_end; key += attention_warps) {
    const int64_t at = key * a.kv_width() + kv_head * n, to_values = int64_t{a.kv_heads} * n;
    load_row(k, a.kv + at, a.scale, n);
    load_row(v, a.kv + at + to_values, 1.0f, n);
    clear_row(dk, n);
    clear_row(dv, n);
    for (int row0 = 0; row0 < rows; row0 += warp_size) {
      const int row = min(row0 + lane, rows - 1), position = row / a.group;
      const int query = a.lists[item.list_begin + position];
      const int id = query * a.heads + kv_head * a.group + row % a.group;
      const bool seen = position >= item.masked || key <= a.query_tokens[query];
      __syncwarp();
      const float p = seen ? exponential(dot(k, a.q + int64_t{id} * n, n) - a.lse[id]) : 0.0f;
      memory.first[lane] = p;
      memory.second[lane] = seen ? p * (dot(v, a.d_o + int64_t{id} * n, n) - a.d[id]) : 0.0f;
      memory.rows[lane] = id;
      __syncwarp();
      const int count = min(warp_size, rows - row0);
      add_rows(dv, n, 1.0f, memory.first, count, [&](int j) { return a.d_o + int64_t{memory.rows[j]} * n; });
      add_rows(dk, n, 1.0f, memory.second, count, [&](int j) { return a.q + int64_t{memory.rows[j]} * n; });
    }
    if (item.row < 0) {
      store_row(a.dkv + at, dk, a.scale, n);
      store_row(a.dkv + at + to_values, dv, 1.0f, n);
    } else {
      float* const to = a.partials + (item.row + key - item.key_begin) * a.kv_width() + kv_head * n;
      store_row(to, dk, a.scale, n);
      store_row(to + to_values, dv, 1.0f, n);
    }
    __syncwarp();
  }
}

}  // namespace

template <class T>
void attention_plain(Stream& stream, const AttentionArguments<T>& a, const GpuPlan& plan) {
  const int bytes = shared_bytes(2, a.head_dim);
  allow_shared_memory(attention_plain_kernel<T>, bytes);
  attention_plain_kernel<T><<<plan.query_tile_count * a.heads, attention_threads, bytes, native(stream)>>>(a);
  check_launch("attention_plain_kernel");
}
template void attention_plain(Stream&, const AttentionArguments<float>&, const GpuPlan&);
template void attention_plain(Stream&, const AttentionArguments<bf16>&, const GpuPlan&);

template <class T>
void attention_backward_plain(Stream& stream, const AttentionArguments<T>& a, const GpuPlan& plan) {
  const int query_bytes = shared_bytes(3, a.head_dim), key_bytes = shared_bytes(4, a.head_dim);
  allow_shared_memory(attention_plain_dq_kernel<T>, query_bytes);
  allow_shared_memory(attention_plain_dkv_kernel<T>, key_bytes);
  if (plan.query_tile_count > 0) {
    attention_plain_dq_kernel<T>
        <<<plan.query_tile_count * a.heads, attention_threads, query_bytes, native(stream)>>>(a);
    check_launch("attention_plain_dq_kernel");
  }
  attention_plain_dkv_kernel<T><<<plan.key_item_count * a.kv_heads, attention_threads, key_bytes, native(stream)>>>(a);
  check_launch("attention_plain_dkv_kernel");
}
template void attention_backward_plain(Stream&, const AttentionArguments<float>&, const GpuPlan&);
template void attention_backward_plain(Stream&, const AttentionArguments<bf16>&, const GpuPlan&);

}  // namespace notellm::gpu

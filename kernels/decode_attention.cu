#include "kernels/cuda_common.cuh"
#include "kernels/decode_attention.h"

namespace notellm::gpu {
namespace {

// A block a query and head: each warp goes over some of the sequence's rows with an online softmax, a lane has `each`
// elements of the head; in the end the warps' sums become one.
constexpr int threads = 128, warps = threads / warp_size;

struct Shape {
  int heads, kv_heads, head_dim, runs;
  float scale;
};

template <int each>
struct State {
  float most = -INFINITY, weight = 0;
  float sums[each] = {};
};

template <int each, class T>
__device__ void read_head(const T* head, int head_dim, float (&x)[each]) {
#pragma unroll
  for (int e = 0; e < each; ++e) {
    const int at = static_cast<int>(threadIdx.x) % warp_size + e * warp_size;
    x[e] = at < head_dim ? to_float(head[at]) : 0.0f;
  }
}

// v is read only when the score is there: in registers both rows would leave no room for enough warps.
template <int each, class T>
__device__ void add_row(const T* k, const T* v, const Shape& shape, const float (&q)[each], State<each>& state) {
  float score = 0;
  {
    float key[each];
    read_head(k, shape.head_dim, key);
#pragma unroll
    for (int e = 0; e < each; ++e) score += q[e] * key[e];
  }
  score = warp_sum(score) * shape.scale;
  const float most = fmaxf(state.most, score), before = expf(state.most - most), p = expf(score - most);
  state.most = most;
  state.weight = state.weight * before + p;
  float value[each];
  read_head(v, shape.head_dim, value);
#pragma unroll
  for (int e = 0; e < each; ++e) state.sums[e] = state.sums[e] * before + p * value[e];
}

// The warps' states as one, written by the first warp.
template <int each, class T>
__device__ void finish(const State<each>& state, int head_dim, T* o) {
  __shared__ float most[warps], weight[warps], sums[warps][each * warp_size];
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  if (lane == 0) {
    most[warp] = state.most;
    weight[warp] = state.weight;
  }
#pragma unroll
  for (int e = 0; e < each; ++e) sums[warp][lane + e * warp_size] = state.sums[e];
  __syncthreads();
  if (warp != 0) return;
  float top = most[0];
  for (int w = 1; w < warps; ++w) top = fmaxf(top, most[w]);
  float all = 0, of_lane[each] = {};
  for (int w = 0; w < warps; ++w) {
    const float share = expf(most[w] - top);  // 0 of a warp without a row
    all += share * weight[w];
#pragma unroll
    for (int e = 0; e < each; ++e) of_lane[e] += share * sums[w][lane + e * warp_size];
  }
#pragma unroll
  for (int e = 0; e < each; ++e)
    if (lane + e * warp_size < head_dim) o[lane + e * warp_size] = from_float<T>(of_lane[e] / all);
}

template <int each, class T>
__global__ void __launch_bounds__(threads)
    decode_attention_kernel(const T* q, const T* kv, T* cache, const int32_t* runs, const int32_t* place, T* o,
                            Shape shape) {
  const int query = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / warp_size, group = shape.heads / shape.kv_heads;
  const int64_t row_size = int64_t{2} * shape.kv_heads * shape.head_dim;
  const int k_at = head / group * shape.head_dim, v_at = k_at + shape.kv_heads * shape.head_dim;
  float own_q[each];
  read_head(q + (int64_t{query} * shape.heads + head) * shape.head_dim, shape.head_dim, own_q);
  State<each> state;
  for (int r = 0; r < shape.runs; ++r) {
    const int32_t* run = runs + (int64_t{query} * shape.runs + r) * 2;
    for (int row = run[0] + warp; row < run[1]; row += warps)
      add_row(cache + row * row_size + k_at, cache + row * row_size + v_at, shape, own_q, state);
  }
  const T* fresh = kv + query * row_size;
  if (warp == 0) add_row(fresh + k_at, fresh + v_at, shape, own_q, state);
  if (head % group == 0) {
    T* kept = cache + place[query] * row_size;
    for (int i = static_cast<int>(threadIdx.x); i < shape.head_dim; i += threads) {
      kept[k_at + i] = fresh[k_at + i];
      kept[v_at + i] = fresh[v_at + i];
    }
  }
  finish(state, shape.head_dim, o + (int64_t{query} * shape.heads + head) * shape.head_dim);
}

template <int each, class T>
void launch(Stream& stream, Tensor q, Tensor kv, Tensor cache, Tensor runs, Tensor place, Tensor o,
            const Shape& shape) {
  const dim3 grid(static_cast<unsigned>(q.rows()), static_cast<unsigned>(shape.heads));
  decode_attention_kernel<each><<<grid, threads, 0, native(stream)>>>(
      q.as<T>(), kv.as<T>(), cache.as<T>(), runs.as<int32_t>(), place.as<int32_t>(), o.as<T>(), shape);
  check_launch("decode_attention_kernel");
}

}  // namespace

void decode_attention(Stream& stream, Tensor q, Tensor kv, Tensor cache, Tensor runs, Tensor place, Tensor o) {
  if (q.rows() == 0) return;
  const auto head_dim = static_cast<int>(q.shape[2]);
  const Shape shape{static_cast<int>(q.shape[1]), static_cast<int>(kv.shape[1] / 2), head_dim,
                    static_cast<int>(runs.shape[1]), 1.0f / sqrtf(static_cast<float>(head_dim))};
  with_float_type("q", q, [&]<class T>(T) {
    if (head_dim <= 64) return launch<2, T>(stream, q, kv, cache, runs, place, o, shape);
    if (head_dim <= 128) return launch<4, T>(stream, q, kv, cache, runs, place, o, shape);
    launch<8, T>(stream, q, kv, cache, runs, place, o, shape);
  });
}

}  // namespace notellm::gpu

#include "kernels/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention_detail.h"
#include "kernels/small_gemm.h"
#include "runtime/memory.h"

// A thread takes a chunk of segments; it widens the keys and values of one segment and kv head at a time to f32 tiles
// that stay in cache, and goes over the queries in groups of block_rows; such a group skips the keys that none of its
// queries sees. The tiles are padded with zeros, so that no product has a remainder.
namespace notellm {
namespace {

using namespace attention_detail;

// Queries whose P and dS are kept together in the backward pass: dK and dV are read and written once for so many.
constexpr int64_t query_block = 64;
// The scores of a group of queries are computed (and zero where not seen) up to a multiple of this, so that a tile of P
// transposed has no remainder either.
constexpr int64_t key_step = std::max(vector_lanes, block_rows);

// Tiles of the calling thread, 64-byte aligned and not cleared; they live until the thread's next call.
template <size_t count>
std::array<float*, count> thread_tiles(const std::array<int64_t, count>& sizes) {
  thread_local Buffer buffer(0);
  int64_t total = 0;
  std::array<int64_t, count> offsets;
  for (size_t i = 0; i < count; ++i) {
    offsets[i] = total;
    total += round_up(sizes[i], 16);
  }
  if (buffer.bytes() < total * size_of(DType::f32)) buffer = Buffer(total * size_of(DType::f32));
  std::array<float*, count> tiles;
  for (size_t i = 0; i < count; ++i) tiles[i] = static_cast<float*>(buffer.data()) + offsets[i];
  return tiles;
}

// Asks for the next head's part of a row, which lies behind this one's: it is wanted within some 10 µs, and rows are
// too far apart for the CPU to guess it.
template <class T>
[[gnu::always_inline]] inline void prefetch_next_head(const T* row, int64_t head_dim) {
  prefetch<3>(row + head_dim, head_dim * static_cast<int64_t>(sizeof(T)));
}

// Distance between rows of scores: not a power of two, whose rows would share few cache sets.
int64_t score_stride(const AttentionSegment& s) { return round_up(key_count(s), tile_columns) + vector_lanes; }

vint column_indices(int64_t first) {
  static constexpr LaneIndices zero_up = lane_indices([](int i) { return i; });
  return zero_up.load() + static_cast<int32_t>(first);
}

// Of block_rows rows at once, so that their reductions overlap: scores := exp(scores − max);
// log_sum = max + log Σ exp(scores − max), inverse_sum = 1 / Σ exp(scores − max).
struct Softmax {
  float log_sum[block_rows], inverse_sum[block_rows];
};
Softmax softmax_rows(float* scores, int64_t stride, int64_t columns) {
  vfloat max[block_rows], sum[block_rows] = {};
  for (int r = 0; r < block_rows; ++r) max[r] = vload(scores + r * stride);
  for (int64_t c = vector_lanes; c < columns; c += vector_lanes)
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; ++r) {
      const vfloat x = vload(scores + r * stride + c);
      max[r] = x > max[r] ? x : max[r];
    }
  Softmax softmax;
#pragma GCC unroll 8
  for (int r = 0; r < block_rows; ++r) {
    softmax.log_sum[r] = lane_max(max[r]);
    max[r] = vfloat{} + softmax.log_sum[r];
  }
  for (int64_t c = 0; c < columns; c += vector_lanes)
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; ++r) {
      const vfloat x = exp_or_zero(vload(scores + r * stride + c) - max[r]);
      vstore(scores + r * stride + c, x);
      sum[r] += x;
    }
#pragma GCC unroll 8
  for (int r = 0; r < block_rows; ++r) {
    const float total = lane_sum(sum[r]);
    softmax.log_sum[r] += std::log(total);
    softmax.inverse_sum[r] = 1.0f / total;
  }
  return softmax;
}

struct ForwardTiles {
  float* keys;    // transposed, in panels
  float* values;  // [keys, tile_dim]
  float* q;       // [block_rows, tile_dim], scaled
  float* scores;  // [block_rows, score_stride]
};

// Queries first … first + block_rows of a segment, for one head.
template <class T>
void forward_rows(const Problem<T>& p, const AttentionSegment& s, int64_t head, int64_t first, const ForwardTiles& t) {
  const int rows = static_cast<int>(std::min<int64_t>(block_rows, s.query_end - first));
  const int64_t tile_dim = p.tile_dim(), stride = score_stride(s);
  int32_t visible[block_rows] = {};
  for (int r = 0; r < rows; ++r) {
    visible[r] = visible_keys(p, s, first + r);
    const int64_t at = p.query_at(first + r, head);
    pack_row(p.q + at, p.head_dim, p.scale, t.q + r * tile_dim);
    prefetch_next_head(p.q + at, p.head_dim);
    prefetch_next_head(p.o + at, p.head_dim);
  }
  std::fill(t.q + rows * tile_dim, t.q + block_rows * tile_dim, 0.0f);

  const int64_t limit = visible[rows - 1], columns = round_up(limit, vector_lanes);
  constexpr float unseen = -std::numeric_limits<float>::infinity();
  gemm_panels(
      RowMajor{t.q, tile_dim}, t.keys, p.head_dim,
      columns, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
        vstore(t.scores + r * stride + c, column_indices(c) < visible[r] ? x : vbroadcast(unseen));
      });
  const Softmax softmax = softmax_rows(t.scores, stride, columns);
  for (int r = 0; r < rows; ++r) p.lse[(first + r) * p.heads + head] = softmax.log_sum[r];
  T* o = p.o + p.query_at(first, head);
  gemm_rows(
      RowMajor{t.scores, stride}, t.values, tile_dim, limit,
      tile_dim, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
        if (r < rows) vstore(o + r * p.heads * p.head_dim + c, x * softmax.inverse_sum[r], p.head_dim - c);
      });
}

template <class T>
void forward_segment(const Problem<T>& p, const AttentionSegment& s, int64_t kv_head) {
  if (query_count(s) == 0) return;
  const int64_t keys = key_count(s), tile_dim = p.tile_dim();
  const auto [k, v, q, scores] = thread_tiles<4>({round_up(keys, tile_columns) * p.head_dim, keys * tile_dim,
                                                  block_rows * tile_dim, block_rows * score_stride(s)});
  pack_transposed([&](int64_t j) { return p.kv + p.key_at(key_token(s, j), kv_head); }, keys, p.head_dim, k);
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t token = key_token(s, j);
    pack_row(p.kv + p.value_at(token, kv_head), p.head_dim, 1.0f, v + j * tile_dim);
    prefetch_next_head(p.kv + p.key_at(token, kv_head), p.head_dim);
    prefetch_next_head(p.kv + p.value_at(token, kv_head), p.head_dim);
  }
  for (int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head)
    for (int64_t first = s.query_begin; first < s.query_end; first += block_rows)
      forward_rows(p, s, head, first, ForwardTiles{k, v, q, scores});
}

struct BackwardTiles {
  float* keys;      // transposed, in panels
  float* values;    // transposed, in panels
  float* key_rows;  // [keys, tile_dim]
  float* dk;        // [keys, tile_dim]
  float* dv;        // [keys, tile_dim]
  float* q;         // [query_block, tile_dim], scaled
  float* d_o;       // [query_block, tile_dim]
  float* p;         // [query_block, score_stride]
  float* ds;        // [query_block, score_stride]
  int32_t visible[query_block];
  float lse[query_block];
  float d[query_block];  // D_i
};

// Queries first … first + rows of a segment, for one head, into tiles; rows up to a multiple of block_rows see nothing.
template <class T>
void load_queries(const Problem<T>& p, const AttentionSegment& s, int64_t head, int64_t first, int64_t rows,
                  BackwardTiles& t) {
  const int64_t tile_dim = p.tile_dim(), padded_rows = round_up(rows, block_rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = p.query_at(first + r, head);
    pack_row(p.q + at, p.head_dim, p.scale, t.q + r * tile_dim);
    pack_row(p.d_o + at, p.head_dim, 1.0f, t.d_o + r * tile_dim);
    for (const T* row : {p.q + at, p.d_o + at, const_cast<const T*>(p.o) + at, const_cast<const T*>(p.dq) + at})
      prefetch_next_head(row, p.head_dim);
    vfloat d = {};
    for (int64_t c = 0; c < p.head_dim; c += vector_lanes)
      d += vload(t.d_o + r * tile_dim + c) * vload(p.o + at + c, p.head_dim - c);
    t.d[r] = lane_sum(d);
    t.visible[r] = visible_keys(p, s, first + r);
    t.lse[r] = p.lse[(first + r) * p.heads + head];
  }
  for (int64_t r = rows; r < padded_rows; ++r) {
    t.visible[r] = 0;
    t.lse[r] = t.d[r] = 0.0f;
  }
  std::fill(t.q + rows * tile_dim, t.q + padded_rows * tile_dim, 0.0f);
  std::fill(t.d_o + rows * tile_dim, t.d_o + padded_rows * tile_dim, 0.0f);
}

// P, dS and dq of block_rows queries, the block's r0-th and those after it, of which `rows` are real.
template <class T>
void backward_rows(const Problem<T>& p, int64_t stride, int64_t r0, int64_t rows, T* dq, const BackwardTiles& t) {
  const int64_t tile_dim = p.tile_dim();
  const int64_t limit = t.visible[r0 + rows - 1], columns = round_up(limit, key_step);
  float* const probability = t.p + r0 * stride;
  float* const ds = t.ds + r0 * stride;
  const RowMajor q{t.q + r0 * tile_dim, tile_dim}, d_o{t.d_o + r0 * tile_dim, tile_dim};
  gemm_panels(
      q, t.keys, p.head_dim, columns, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
        const vfloat e = exp_or_zero(x - t.lse[r0 + r]);
        vstore(probability + r * stride + c, column_indices(c) < t.visible[r0 + r] ? e : vfloat{});
      });
  gemm_panels(
      d_o, t.values, p.head_dim, columns, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
        vstore(ds + r * stride + c, vload(probability + r * stride + c) * (x - t.d[r0 + r]));
      });
  gemm_rows(
      RowMajor{ds, stride}, t.key_rows, tile_dim, limit,
      tile_dim, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
        if (r < rows) vstore(dq + r * p.heads * p.head_dim + c, x * p.scale, p.head_dim - c);
      });
}

// dk += dSᵀ·q and dv += Pᵀ·dO over a block's queries, block_rows keys at a time, from the first query that sees any of
// them.
void accumulate_keys(int64_t stride, int64_t rows, int64_t tile_dim, const BackwardTiles& t) {
  const int64_t padded_rows = round_up(rows, block_rows);
  int64_t first = 0;
  for (int64_t key = 0; key < t.visible[rows - 1]; key += block_rows) {
    while (t.visible[first] <= key) ++first;
    const auto add = [&](const float* weights, const float* of, float* to) __attribute__((always_inline)) {
      gemm_rows(
          ColumnMajor{weights + first * stride + key, stride}, of + first * tile_dim, tile_dim, padded_rows - first,
          tile_dim, [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) {
            float* at = to + (key + r) * tile_dim + c;
            vstore(at, vload(at) + x);
          });
    };
    add(t.p, t.d_o, t.dv);
    add(t.ds, t.q, t.dk);
  }
}

template <class T>
void store_row(const float* from, int64_t n, T* to) {
  for (int64_t c = 0; c < n; c += vector_lanes) vstore(to + c, vload(from + c, n - c), n - c);
}
void add_row(const float* from, int64_t n, float* to) {
  for (int64_t c = 0; c < n; c += vector_lanes) vstore(to + c, vload(to + c, n - c) + vload(from + c, n - c), n - c);
}

// The gradient [keys, tile_dim] of a segment's k or v, whose place within a row of kv is `offset`. Own tokens that no
// prefix contains have theirs complete; for all others it goes to the workspace.
template <class T>
void store_key_gradient(const Problem<T>& p, const CpuPlan& plan, int64_t segment, const float* gradient,
                        int64_t offset, float* workspace) {
  const AttentionSegment& s = p.segments[segment];
  const Run* const run = plan.run_of[segment] < 0 ? nullptr : &plan.runs[plan.run_of[segment]];
  const int64_t width = p.key_at(1, 0), dim = p.head_dim, tile_dim = p.tile_dim();
  int64_t key = 0;
  for (; run && key < prefix_count(s); ++key) {
    float* const sum = workspace + (run->row + key) * width + offset;
    if (run->first_segment == segment)
      store_row(gradient + key * tile_dim, dim, sum);
    else
      add_row(gradient + key * tile_dim, dim, sum);
  }
  for (key = prefix_count(s); key < key_count(s); ++key) {
    const int64_t token = key_token(s, key), row = plan.row_of[token];
    if (row < 0)
      store_row(gradient + key * tile_dim, dim, p.dkv + token * width + offset);
    else
      store_row(gradient + key * tile_dim, dim, workspace + row * width + offset);
  }
}

template <class T>
void backward_segment(const Problem<T>& p, const CpuPlan& plan, int64_t segment, int64_t kv_head, float* workspace) {
  const AttentionSegment& s = p.segments[segment];
  const int64_t keys = key_count(s), tile_dim = p.tile_dim(), stride = score_stride(s);
  const int64_t packed = round_up(keys, tile_columns) * p.head_dim, rows = round_up(keys, block_rows) * tile_dim;
  const auto [k, v, key_rows, dk, dv, q, d_o, probability, ds] =
      thread_tiles<9>({packed, packed, rows, rows, rows, query_block * tile_dim, query_block * tile_dim,
                       query_block * stride, query_block * stride});
  BackwardTiles t{k, v, key_rows, dk, dv, q, d_o, probability, ds, {}, {}, {}};
  std::fill(dk, dk + rows, 0.0f);
  std::fill(dv, dv + rows, 0.0f);
  if (query_count(s) > 0) {
    const auto key_row = [&](int64_t j) { return p.kv + p.key_at(key_token(s, j), kv_head); };
    pack_transposed(key_row, keys, p.head_dim, k);
    pack_transposed([&](int64_t j) { return p.kv + p.value_at(key_token(s, j), kv_head); }, keys, p.head_dim, v);
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t token = key_token(s, j), key = p.key_at(token, kv_head), value = p.value_at(token, kv_head);
      pack_row(p.kv + key, p.head_dim, 1.0f, key_rows + j * tile_dim);
      for (const T* row :
           {p.kv + key, p.kv + value, const_cast<const T*>(p.dkv) + key, const_cast<const T*>(p.dkv) + value})
        prefetch_next_head(row, p.head_dim);
    }
  }
  for (int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head)
    for (int64_t first = s.query_begin; first < s.query_end; first += query_block) {
      const int64_t count = std::min(query_block, s.query_end - first);
      load_queries(p, s, head, first, count, t);
      for (int64_t r = 0; r < count; r += block_rows)
        backward_rows(p, stride, r, std::min<int64_t>(block_rows, count - r), p.dq + p.query_at(first + r, head), t);
      accumulate_keys(stride, count, tile_dim, t);
    }
  store_key_gradient(p, plan, segment, dk, p.key_at(0, kv_head), workspace);
  store_key_gradient(p, plan, segment, dv, p.value_at(0, kv_head), workspace);
}

// Rows that no segment's task writes are 0.
template <class T>
void clear_uncovered(const Problem<T>& p, const CpuPlan& plan, float* workspace) {
  const int64_t query_width = p.query_at(1, 0), width = p.key_at(1, 0);
  for (size_t query = 0; query < plan.query_covered.size(); ++query)
    if (!plan.query_covered[query]) std::fill_n(p.dq + query * query_width, query_width, T(0.0f));
  for (size_t token = 0; token < plan.token_covered.size(); ++token) {
    if (plan.token_covered[token]) continue;
    if (plan.row_of[token] < 0)
      std::fill_n(p.dkv + token * width, width, T(0.0f));
    else
      std::fill_n(workspace + plan.row_of[token] * width, width, 0.0f);
  }
}

// The tokens of prefixes: own gradient, then the runs in order. One thread does a k or v head of all of them.
template <class T>
void sum_prefixes(const Problem<T>& p, const CpuPlan& plan, float* workspace) {
  const int64_t width = p.key_at(1, 0), dim = p.head_dim;
#pragma omp parallel for
  for (int64_t offset = 0; offset < width; offset += dim) {
    for (const Run& run : plan.runs)
      for (int64_t token = run.prefix_begin; token < run.prefix_end; ++token)
        add_row(workspace + (run.row + token - run.prefix_begin) * width + offset, dim,
                workspace + plan.row_of[token] * width + offset);
    for (size_t token = 0; token < plan.row_of.size(); ++token)
      if (plan.row_of[token] >= 0)
        store_row(workspace + plan.row_of[token] * width + offset, dim, p.dkv + token * width + offset);
  }
}

// The checks of both passes.
void check_shapes(const AttentionPlan& plan, const Tensor& q, const Tensor& kv) {
  NOTELLM_CHECK(q.dims == 3 && q.shape[1] >= 1, "q is {}, but [queries, heads, head_dim] is needed", describe(q));
  NOTELLM_CHECK(kv.dims == 3 && kv.shape[1] >= 2 && kv.shape[1] % 2 == 0 && kv.shape[2] >= 1,
                "kv is {}, but [tokens, 2·kv_heads, head_dim] is needed", describe(kv));
  NOTELLM_CHECK(q.dtype == kv.dtype && q.shape[2] == kv.shape[2], "q is {}, kv is {}: dtype and head_dim must agree",
                describe(q), describe(kv));
  NOTELLM_CHECK(q.rows() == plan.queries() && kv.rows() == plan.tokens(),
                "q is {} and kv {}, but the plan has {} queries and {} tokens", describe(q), describe(kv),
                plan.queries(), plan.tokens());
  NOTELLM_CHECK(q.shape[1] % (kv.shape[1] / 2) == 0, "{} heads are no multiple of {} kv heads", q.shape[1],
                kv.shape[1] / 2);
}
void check_arguments(const AttentionPlan& plan, const Tensor& q, const Tensor& kv, const Tensor& o, const Tensor& lse) {
  check_shapes(plan, q, kv);
  expect("o", o, q.dtype, q.rows(), q.cols());
  expect("lse", lse, DType::f32, q.rows(), q.shape[1]);
}

}  // namespace

void attention(Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv, Tensor o, Tensor lse) {
  check_arguments(plan, q, kv, o, lse);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::attention(stream, plan, q, kv, o, lse);
  with_float_type("q", q, [&]<class T>(T) {
    const Problem<T> p(plan, q, kv, o, lse);
    for_each_head(plan.cpu().chunks, p.kv_heads,
                  [&](int64_t segment, int64_t kv_head) { forward_segment(p, p.segments[segment], kv_head); });
  });
}

void attention_backward(Stream& stream, const AttentionPlan& plan, Tensor d_o, Tensor q, Tensor kv, Tensor o,
                        Tensor lse, Tensor dq, Tensor dkv, Tensor workspace) {
  check_arguments(plan, q, kv, o, lse);
  expect("d_o", d_o, q.dtype, q.rows(), q.cols());
  expect("dq", dq, q.dtype, q.rows(), q.cols());
  expect("dkv", dkv, kv.dtype, kv.rows(), kv.cols());
  const int64_t needed = attention_workspace(stream, plan, q, kv);
  NOTELLM_CHECK(workspace.dtype == DType::f32 && workspace.size() >= needed,
                "workspace is {}, but f32 and {} elements are needed", describe(workspace), needed);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::attention_backward(stream, plan, d_o, q, kv, o, lse, dq, dkv, workspace);
  float* const sums = workspace.as<float>();
  with_float_type("q", q, [&]<class T>(T) {
    Problem<T> p(plan, q, kv, o, lse);
    p.d_o = d_o.as<T>();
    p.dq = dq.as<T>();
    p.dkv = dkv.as<T>();
    const CpuPlan& work = plan.cpu();
    clear_uncovered(p, work, sums);
    for_each_head(work.chunks, p.kv_heads,
                  [&](int64_t segment, int64_t kv_head) { backward_segment(p, work, segment, kv_head, sums); });
    sum_prefixes(p, work, sums);
  });
}

int64_t attention_workspace(const Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv) {
  check_shapes(plan, q, kv);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::attention_workspace(plan, q, kv);
  return plan.cpu().rows * kv.cols();
}

}  // namespace notellm

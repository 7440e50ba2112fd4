// What stands beside the arithmetic of attention on the CPU: the arguments as pointers, and the work shared out.
#pragma once

#include <omp.h>

#include <cmath>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/checks.h"
#include "kernels/small_gemm.h"

namespace notellm::attention_detail {

inline int64_t key_token(const AttentionSegment& s, int64_t key) {
  return key < prefix_count(s) ? s.prefix_begin + key : s.begin + key - prefix_count(s);
}

// What the calls share. T is the element type; the pointers of the backward pass are null in the forward pass.
template <class T>
struct Problem {
  std::span<const AttentionSegment> segments;
  int64_t heads, kv_heads, head_dim;
  float scale;
  const T* q;
  const T* kv;
  const int32_t* query_tokens;
  T* o;
  float* lse;
  const T* d_o = nullptr;
  T* dq = nullptr;
  T* dkv = nullptr;

  Problem(const AttentionPlan& plan, Tensor q, Tensor kv, Tensor o, Tensor lse)
      : segments(plan.segments()),
        heads(q.shape[1]),
        kv_heads(kv.shape[1] / 2),
        head_dim(q.shape[2]),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))),
        q(q.as<T>()),
        kv(kv.as<T>()),
        query_tokens(plan.query_tokens()),
        o(o.as<T>()),
        lse(lse.as<float>()) {}

  int64_t group() const { return heads / kv_heads; }
  int64_t tile_dim() const { return round_up(head_dim, vector_lanes); }  // row of a tile of q, k or v
  int64_t query_at(int64_t query, int64_t head) const { return (query * heads + head) * head_dim; }
  int64_t key_at(int64_t token, int64_t kv_head) const { return (token * 2 * kv_heads + kv_head) * head_dim; }
  int64_t value_at(int64_t token, int64_t kv_head) const { return key_at(token, kv_heads + kv_head); }
};

// Keys of its segment that a query sees: the first so many.
template <class T>
int32_t visible_keys(const Problem<T>& p, const AttentionSegment& s, int64_t query) {
  return static_cast<int32_t>(prefix_count(s) + p.query_tokens[query] - s.begin + 1);
}

// Calls f(segment, kv head) for all pairs, on all threads; the segments of a chunk in order, on one thread for a head.
// Where there are chunks enough for all threads, one does all heads of a segment, which lie next to each other in
// memory.
template <class F>
void for_each_head(const std::vector<Range>& chunks, int64_t kv_heads, F&& f) {
  const int64_t count = static_cast<int64_t>(chunks.size());
  const int64_t splits = count >= 4 * omp_get_max_threads() ? 1 : kv_heads;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < count * splits; ++task) {
    const int64_t first_head = task % splits, end_head = splits == 1 ? kv_heads : first_head + 1;
    const Range chunk = chunks[task / splits];
    for (int64_t segment = chunk.begin; segment < chunk.end; ++segment)
      for (int64_t head = first_head; head < end_head; ++head) f(segment, head);
  }
}

}  // namespace notellm::attention_detail

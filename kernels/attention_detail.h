// What stands beside the arithmetic of attention: the arguments as pointers and their checks, the work in chunks, where
// sums over segments are kept, and exp.
#pragma once

#include <omp.h>

#include <cmath>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/checks.h"
#include "kernels/small_gemm.h"

namespace notellm::attention_detail {

inline int64_t prefix_count(const AttentionSegment& s) { return s.prefix_end - s.prefix_begin; }
inline int64_t own_count(const AttentionSegment& s) { return s.end - s.begin; }
inline int64_t key_count(const AttentionSegment& s) { return prefix_count(s) + own_count(s); }
inline int64_t query_count(const AttentionSegment& s) { return s.query_end - s.query_begin; }
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

  Problem(std::span<const AttentionSegment> segments, Tensor q, Tensor kv, Tensor query_tokens, Tensor o, Tensor lse)
      : segments(segments),
        heads(q.shape[1]),
        kv_heads(kv.shape[1] / 2),
        head_dim(q.shape[2]),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))),
        q(q.as<T>()),
        kv(kv.as<T>()),
        query_tokens(query_tokens.as<int32_t>()),
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

struct Range {
  int64_t begin, end;
};

// Runs of segments with at least so many own tokens together: some 10 µs of work a head. A function of the segments
// alone, so that sums over a chunk do not depend on the number of threads. Valid until the thread's next call.
inline const std::vector<Range>& chunks_of(std::span<const AttentionSegment> segments) {
  constexpr int64_t chunk_tokens = 512;
  thread_local std::vector<Range> chunks;
  chunks.clear();
  int64_t tokens = chunk_tokens;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (tokens >= chunk_tokens) {
      chunks.push_back({static_cast<int64_t>(i), 0});
      tokens = 0;
    }
    tokens += own_count(segments[i]);
    chunks.back().end = static_cast<int64_t>(i) + 1;
  }
  return chunks;
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

// Where the gradients of keys that several segments see are summed: in f32, in rows of the workspace as wide as kv's.
// The first rows belong to the tokens that are in some prefix, one each; the others are the sums over runs:
// neighbouring segments of one chunk with the same prefix.
struct Run {
  int64_t prefix_begin, prefix_end;
  int64_t row;
  int64_t first_segment;
};
struct BackwardPlan {
  std::vector<Run> runs;
  std::vector<int32_t> run_of;  // [segments]: the run that it adds to; −1: no prefix, or no queries
  std::vector<int32_t> row_of;  // [tokens]: its row of the workspace; −1: in no prefix
  int64_t rows = 0;
};

// The calling thread's plan, valid until its next call.
inline const BackwardPlan& plan_backward(std::span<const AttentionSegment> segments, int64_t tokens) {
  thread_local BackwardPlan plan;
  plan.runs.clear();
  plan.run_of.assign(segments.size(), -1);
  plan.row_of.assign(static_cast<size_t>(tokens), -1);
  plan.rows = 0;
  const auto takes_part = [](const AttentionSegment& s) { return prefix_count(s) > 0 && query_count(s) > 0; };
  for (const AttentionSegment& s : segments)
    if (takes_part(s))
      for (int64_t token = s.prefix_begin; token < s.prefix_end; ++token)
        if (plan.row_of[token] < 0) plan.row_of[token] = static_cast<int32_t>(plan.rows++);
  for (const Range& chunk : chunks_of(segments)) {
    const size_t first_run = plan.runs.size();
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const AttentionSegment& s = segments[i];
      if (!takes_part(s)) continue;
      if (plan.runs.size() == first_run || plan.runs.back().prefix_begin != s.prefix_begin ||
          plan.runs.back().prefix_end != s.prefix_end) {
        plan.runs.push_back({s.prefix_begin, s.prefix_end, plan.rows, i});
        plan.rows += prefix_count(s);
      }
      plan.run_of[i] = static_cast<int32_t>(plan.runs.size()) - 1;
    }
  }
  return plan;
}

inline void check_kv(const Tensor& kv) {
  NOTELLM_CHECK(kv.dims == 3 && kv.shape[1] >= 2 && kv.shape[1] % 2 == 0 && kv.shape[2] >= 1,
                "kv is {}, but [tokens, 2·kv_heads, head_dim] is needed", describe(kv));
}

// Throws Error unless all segments and prefixes lie inside the tokens.
inline void check_ranges(std::span<const AttentionSegment> segments, int64_t tokens) {
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    NOTELLM_CHECK(0 <= s.begin && s.begin <= s.end && s.end <= tokens, "segment {} is {}..{} of {} tokens", i, s.begin,
                  s.end, tokens);
    NOTELLM_CHECK(0 <= s.prefix_begin && s.prefix_begin <= s.prefix_end && s.prefix_end <= tokens,
                  "the prefix of segment {} is {}..{} of {} tokens", i, s.prefix_begin, s.prefix_end, tokens);
  }
}

// Which tokens and queries belong to a segment.
struct Coverage {
  std::vector<bool> tokens, queries;
};

// Throws Error unless segments share no tokens and no queries, and each query is a token of its segment, in ascending
// order. The result is valid until the thread's next call.
inline const Coverage& check_coverage(std::span<const AttentionSegment> segments, int64_t tokens,
                                      std::span<const int32_t> query_tokens) {
  thread_local Coverage covered;
  covered.tokens.assign(static_cast<size_t>(tokens), false);
  covered.queries.assign(query_tokens.size(), false);
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    NOTELLM_CHECK(
        0 <= s.query_begin && s.query_begin <= s.query_end && s.query_end <= static_cast<int64_t>(query_tokens.size()),
        "segment {} has queries {}..{} of {}", i, s.query_begin, s.query_end, query_tokens.size());
    for (int64_t token = s.begin; token < s.end; ++token) {
      NOTELLM_CHECK(!covered.tokens[token], "token {} belongs to segment {} and to one before it", token, i);
      covered.tokens[token] = true;
    }
    int64_t previous = int64_t{s.begin} - 1;
    for (int64_t query = s.query_begin; query < s.query_end; ++query) {
      NOTELLM_CHECK(!covered.queries[query], "query {} belongs to segment {} and to one before it", query, i);
      covered.queries[query] = true;
      NOTELLM_CHECK(previous < query_tokens[query] && query_tokens[query] < s.end,
                    "query {} of segment {} is token {}; it must lie in {}..{} and after the query before it", query, i,
                    query_tokens[query], s.begin, s.end);
      previous = query_tokens[query];
    }
  }
  return covered;
}

// The checks of both passes.
inline const Coverage& check_arguments(std::span<const AttentionSegment> segments, const Tensor& q, const Tensor& kv,
                                       const Tensor& query_tokens, const Tensor& o, const Tensor& lse) {
  NOTELLM_CHECK(q.dims == 3 && q.shape[1] >= 1, "q is {}, but [queries, heads, head_dim] is needed", describe(q));
  check_kv(kv);
  NOTELLM_CHECK(q.dtype == kv.dtype && q.shape[2] == kv.shape[2], "q is {}, kv is {}: dtype and head_dim must agree",
                describe(q), describe(kv));
  expect("query_tokens", query_tokens, DType::i32, q.rows());
  expect("o", o, q.dtype, q.rows(), q.cols());
  expect("lse", lse, DType::f32, q.rows(), q.shape[1]);
  NOTELLM_CHECK(q.shape[1] % (kv.shape[1] / 2) == 0, "{} heads are no multiple of {} kv heads", q.shape[1],
                kv.shape[1] / 2);
  check_ranges(segments, kv.rows());
  return check_coverage(segments, kv.rows(), {query_tokens.as<int32_t>(), static_cast<size_t>(q.rows())});
}

}  // namespace notellm::attention_detail

// What attends to what in a packed batch: checked, and cut into pieces of work, once for all layers and both passes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/tensor.h"

namespace notellm {

// Keys stand for all tokens of the batch; queries may be a subset of them (the last layer needs only the rows that
// something reads).
struct AttentionSegment {
  int32_t begin, end;                // tokens of the segment; no token is in two segments
  int32_t prefix_begin, prefix_end;  // tokens of its prefix, which all its queries see; empty: begin = end
  int32_t query_begin, query_end;    // queries of the segment, perhaps none; no query is in two segments
};

namespace attention_detail {

inline int64_t prefix_count(const AttentionSegment& s) { return s.prefix_end - s.prefix_begin; }
inline int64_t own_count(const AttentionSegment& s) { return s.end - s.begin; }
inline int64_t key_count(const AttentionSegment& s) { return prefix_count(s) + own_count(s); }
inline int64_t query_count(const AttentionSegment& s) { return s.query_end - s.query_begin; }

struct Range {
  int64_t begin, end;
};

// The CPU's work. Where the gradients of keys that several segments see are summed: in f32, in rows of the workspace as
// wide as kv's. The first rows belong to the tokens that are in some prefix, one each; the others are the sums over
// runs: neighbouring segments of one chunk with the same prefix.
struct Run {
  int64_t prefix_begin, prefix_end;
  int64_t row;
  int64_t first_segment;
};
struct CpuPlan {
  std::vector<Range> chunks;  // of segments; sums over a chunk do not depend on the number of threads
  std::vector<bool> token_covered, query_covered;  // whether in a segment
  std::vector<Run> runs;
  std::vector<int32_t> run_of;  // [segments]: the run that it adds to; −1: no prefix, or no queries
  std::vector<int32_t> row_of;  // [tokens]: its row of the workspace; −1: in no prefix
  int64_t rows = 0;
};

// The GPU's work, in tables of i32 that kernels read; each is 16-byte aligned.
constexpr int32_t tile_size = 64;  // most queries of a QueryTile, and keys of a KeyItem

// Queries that lie next to each other in one segment, for the forward pass and dq.
struct alignas(16) QueryTile {
  int32_t query_begin, query_end;
  int32_t prefix_begin, prefix_count;
  int32_t own_begin;   // query q sees the prefix, then tokens own_begin … query_tokens[q]
  int32_t in_segment;  // 0: of no segment
  int32_t unused[2];
};
// Keys that lie next to each other and are seen by the same segments, with some of the queries that see them, for dk
// and dv. lists[list_begin … list_end) are these queries; the first `masked` see a key only if its token is not behind
// their own. Every token is in at least one item.
struct alignas(16) KeyItem {
  int32_t key_begin, key_end;
  int32_t list_begin, list_end;
  int32_t masked;
  int32_t row;  // −1: the only item of these keys, it writes dkv; else where its rows of partial sums begin
  int32_t unused[2];
};
// Keys of several items: dkv is the sum of their rows, row + i·(key_end − key_begin) the first of the i-th.
struct alignas(16) KeySum {
  int32_t key_begin, key_end;
  int32_t row, items;
};
struct GpuPlan {
  // Where each table begins, in elements, and how many entries it has. query_tokens stands first.
  int64_t lists, query_tiles, key_items, key_sums;
  int32_t query_tile_count, key_item_count, key_sum_count;
  int64_t rows;  // of partial sums
};

}  // namespace attention_detail

// On the CPU set() is all that is needed. For CUDA the owner then puts a copy of tables() into device memory and gives
// it by set_device_tables(); it must live as long as something enqueued reads it. Vectors keep their capacity: use one
// object for many batches.
class AttentionPlan {
 public:
  AttentionPlan() = default;
  AttentionPlan(std::span<const AttentionSegment> segments, std::span<const int32_t> query_tokens, int64_t tokens) {
    set(segments, query_tokens, tokens);
  }

  // Copies its arguments. query_tokens: the token of each query, ascending within a segment, inside the segment.
  // Throws Error: a segment or prefix outside the tokens; segments that share tokens or queries; query_tokens that are
  // not ascending tokens of their segment. The plan is then not to be used.
  void set(std::span<const AttentionSegment> segments, std::span<const int32_t> query_tokens, int64_t tokens);

  int64_t tokens() const { return tokens_; }
  int64_t queries() const { return static_cast<int64_t>(query_tokens_.size()); }

  // What the GPU needs to know, [n] i32 in host memory, valid until the next call of a function that is not const.
  Tensor tables();
  // After tables(): its copy in device memory, 16-byte aligned. Throws Error unless it is that, of the same size.
  void set_device_tables(Tensor tables);

  // For the op itself.
  std::span<const AttentionSegment> segments() const { return segments_; }
  const int32_t* query_tokens() const { return query_tokens_.data(); }
  const attention_detail::CpuPlan& cpu() const { return cpu_; }
  const attention_detail::GpuPlan& gpu() const;  // throws Error unless tables() has been called
  const int32_t* device_tables() const;          // throws Error unless they have been set

 private:
  struct TableBuilder;
  void check();
  void plan_cpu();

  int64_t tokens_ = 0;
  std::vector<AttentionSegment> segments_;
  std::vector<int32_t> query_tokens_;
  attention_detail::CpuPlan cpu_;
  attention_detail::GpuPlan gpu_ = {};
  std::vector<int32_t> tables_;
  Tensor device_tables_;
};

}  // namespace notellm

// A packed batch as the transformer reads it, and the rows whose hidden states it will return.
#pragma once

#include <span>
#include <vector>

#include "data_pipeline/batch.h"
#include "kernels/attention.h"
#include "kernels/embedding.h"
#include "runtime/tensor.h"

namespace notellm {

// Views into the batch, which must outlive it, and into vectors of its own, which keep their capacity: use one object
// for many batches.
class ModelInput {
 public:
  // with_labels: label rows are read too, not only note rows.
  void set(const PackedBatch& batch, bool with_labels);

  int64_t tokens() const { return tokens_.rows(); }
  int64_t hidden_rows() const { return static_cast<int64_t>(rows_.size()); }
  // Where the rows stand among the hidden rows; the places of one list are distinct.
  Tensor note_places() const { return view(note_places_); }    // [2b]
  Tensor label_places() const { return view(label_places_); }  // [m]

 private:
  friend class Transformer;
  static Tensor view(const std::vector<int32_t>& v) { return Tensor::of(v.data(), {static_cast<int64_t>(v.size())}); }
  // Queries: all tokens, but in the last layer only the rows that are read.
  std::span<const AttentionSegment> segments_of(bool last) const { return last ? last_segments_ : segments_; }
  RowGroups rows_of_tokens() const { return rows_of_tokens_.view(); }
  Tensor queries_of(bool last) const { return view(last ? rows_ : all_tokens_); }

  Tensor tokens_, positions_;           // [n] i32
  GroupedRows rows_of_tokens_;          // rows by token
  std::vector<int32_t> all_tokens_;     // 0 .. n-1
  std::vector<int32_t> rows_;           // [r] ascending
  std::vector<int32_t> row_positions_;  // [r]
  std::vector<AttentionSegment> segments_, last_segments_;
  std::vector<int32_t> note_places_, label_places_;
};

}  // namespace notellm

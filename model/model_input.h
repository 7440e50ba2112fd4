// A packed batch as the transformer reads it, and the rows whose hidden states it will return.
#pragma once

#include <vector>

#include "data_pipeline/batch.h"
#include "kernels/attention.h"
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
  Tensor note_places() const { return view(note_places_); }    // [2b] where note i's row stands among the hidden rows
  Tensor label_places() const { return view(label_places_); }  // [m]

 private:
  friend class Transformer;
  static Tensor view(const std::vector<int32_t>& v) { return Tensor::of(v.data(), {static_cast<int64_t>(v.size())}); }
  // Queries: all tokens, but in the last layer only the rows that are read.
  const AttentionPlan& plan_of(bool last) const { return last ? last_plan_ : plan_; }

  Tensor tokens_, positions_;               // [n] i32
  std::vector<int32_t> all_tokens_;         // 0 .. n-1
  std::vector<int32_t> rows_;               // [r] ascending
  std::vector<int32_t> row_positions_;      // [r]
  std::vector<AttentionSegment> segments_;  // scratch of set()
  AttentionPlan plan_, last_plan_;
  std::vector<int32_t> note_places_, label_places_;
};

}  // namespace notellm

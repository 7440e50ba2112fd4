// A packed batch as the transformer reads it, and the rows whose hidden states it will return.
#pragma once

#include <optional>
#include <vector>

#include "data_pipeline/batch.h"
#include "kernels/attention.h"
#include "kernels/attention_cudnn.h"
#include "kernels/embedding.h"
#include "runtime/transfer.h"

namespace notellm {

// Views into the batch, which must outlive it, and into vectors of its own, which keep their capacity: use one object
// for many batches. With CUDA all arrays are copied to the GPU, on a stream of their own: set() may be called while
// work that reads another object goes on.
class ModelInput {
 public:
  // cudnn: the heads, where cuDNN computes attention; only with CUDA.
  explicit ModelInput(Device device = Device::cpu, std::optional<CudnnHeads> cudnn = {})
      : device_(device), cudnn_(cudnn), upload_(device) {}

  // with_labels: label rows are read too, not only note rows. Throws Error: what AttentionPlan, with cuDNN
  // CudnnSequences, refuses.
  void set(const PackedBatch& batch, bool with_labels);
  // Around the work that reads the input: what is enqueued after wait() finds it there; done() says that what has been
  // enqueued is the last to read it, and comes before the next set().
  void wait(Stream& stream) const { upload_.wait(stream); }
  void done(Stream& stream) { upload_.done(stream); }

  int64_t tokens() const { return tokens_.rows(); }
  int64_t hidden_rows() const { return rows_.rows(); }
  // Where the rows stand among the hidden rows; the places of one list are distinct.
  Tensor note_places() const { return note_places_; }    // [2b]
  Tensor label_places() const { return label_places_; }  // [m]
  Tensor labels() const { return labels_; }              // [m] the batch's

 private:
  friend class Transformer;
  // Queries: all tokens, but in the last layer only the rows that are read.
  const AttentionPlan& plan_of(bool last) const { return last ? last_plan_ : plan_; }
  void set_plan(const PackedBatch& batch, const std::vector<int32_t>& query_tokens, AttentionPlan& plan);
  void upload(const PackedBatch& batch);

  // The host's lists.
  struct Lists {
    std::vector<int32_t> all_tokens;     // 0 .. n-1
    std::vector<int32_t> rows;           // [r] ascending
    std::vector<int32_t> row_positions;  // [r]
    std::vector<int32_t> note_places, label_places;
    std::vector<AttentionSegment> segments;  // scratch of set()
  };
  Device device_;
  std::optional<CudnnHeads> cudnn_;
  Lists lists_;
  GroupedRows tokens_grouped_;
  AttentionPlan plan_, last_plan_;
  CudnnSequences sequences_;  // with cuDNN: for all layers but the last
  Upload upload_;
  // What the ops read, on the device.
  Tensor tokens_, positions_;    // [n] i32
  Tensor rows_, row_positions_;  // [r] i32
  RowGroups rows_of_tokens_;     // rows by token
  Tensor note_places_, label_places_, labels_;
};

}  // namespace notellm

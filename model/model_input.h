// A packed batch as the transformer reads it, and the rows whose hidden states it will return.
#pragma once

#include <optional>
#include <vector>

#include "data_pipeline/batch.h"
#include "kernels/attention.h"
#include "kernels/attention_cudnn.h"
#include "kernels/embedding.h"
#include "model/row_share.h"
#include "runtime/transfer.h"

namespace notellm {

// Views into the batch, which must outlive it, and into vectors of its own, which keep their capacity: use one object
// for many batches. With CUDA all arrays are copied to the GPU, on a stream of their own: set() may be called while
// work that reads another object goes on.
class ModelInput {
 public:
  // cudnn: the heads, where cuDNN computes attention; only with CUDA. part: for the rank's part of the model.
  explicit ModelInput(Device device = Device::cpu, std::optional<CudnnHeads> cudnn = {}, TensorPart part = {})
      : device_(device), cudnn_(cudnn), share_(part, device), upload_(device) {}

  // vocabulary: rows of the whole embedding, padding included; it decides which tokens belong to the part. with_labels:
  // label rows are read too, not only note rows. Throws Error: what AttentionPlan, with cuDNN CudnnSequences, refuses.
  void set(const PackedBatch& batch, int64_t vocabulary, bool with_labels);
  // Around the work that reads the input: what is enqueued after wait() finds it there; done() says that what has been
  // enqueued is the last to read it, and comes before the next set().
  void wait(Stream& stream) const { upload_.wait(stream); }
  void done(Stream& stream) { upload_.done(stream); }

  int64_t tokens() const { return tokens_.rows(); }
  int64_t hidden_rows() const { return own_rows_.rows(); }
  // Where the rows stand among the hidden rows; the places of one list are distinct.
  Tensor note_places() const { return note_places_; }    // [2b]
  Tensor label_places() const { return label_places_; }  // [m]
  // [m] the batch's, as rows of this part of the head; −1: of another part
  Tensor labels() const { return labels_; }

 private:
  friend class Transformer;
  // Queries: all tokens, but in the last layer only the rows that are read.
  const AttentionPlan& plan_of(bool last) const { return last ? last_plan_ : plan_; }
  void set_plan(const PackedBatch& batch, const std::vector<int32_t>& query_tokens, AttentionPlan& plan);
  void upload(const PackedBatch& batch);

  // The host's lists.
  struct Lists {
    std::vector<int32_t> all_tokens;      // 0 .. n-1
    std::vector<int32_t> rows;            // [r] ascending
    std::vector<int32_t> row_positions;   // [r]
    std::vector<int32_t> own_rows;        // [r] where the rank keeps the token's row of the residual stream, or −1
    std::vector<int32_t> tokens, labels;  // [n], [m] as rows of the part of the vocabulary, or −1
    std::vector<int32_t> note_places, label_places;
    std::vector<AttentionSegment> segments;  // scratch of set()
  };
  Device device_;
  std::optional<CudnnHeads> cudnn_;
  Lists lists_;
  RowShare share_;
  GroupedRows tokens_grouped_, rows_grouped_;
  AttentionPlan plan_, last_plan_;
  CudnnSequences sequences_;  // with cuDNN: for all layers but the last
  Upload upload_;
  // What the ops read, on the device.
  Tensor tokens_, positions_;        // [n] i32
  Tensor own_rows_, row_positions_;  // [r] i32
  RowGroups rows_of_tokens_;         // rows by token
  RowGroups hidden_rows_of_rows_;    // hidden rows by the rank's own row of the residual stream
  Tensor note_places_, label_places_, labels_;
};

}  // namespace notellm

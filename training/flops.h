// Floating-point operations of a training step's matrix products, counted from the batch that is computed. A product of
// [m, k] and [k, n] counts 2·m·k·n; what is not a matrix product (norms, softmax, …) counts nothing.
#pragma once

#include "data_pipeline/batch.h"
#include "model/config.h"

namespace notellm {

struct StepFlops {
  double layers = 0;     // projections and feed-forward, forward and backward
  double attention = 0;  // scores and weighted sums over the keys that each query sees
  double heads = 0;      // LM head on label rows and vector head on note rows
  double infonce = 0;    // similarities and their gradient
  double repeated = 0;   // of all these: what has been computed before and is so again, to save memory

  double total() const { return layers + attention + heads + infonce; }
  // What the model asks for, the numerator of MFU (PaLM, arXiv 2204.02311, appendix B).
  double model() const { return total() - repeated; }
  StepFlops& operator+=(const StepFlops& other);
  StepFlops operator*(double times) const {
    return {layers * times, attention * times, heads * times, infonce * times, repeated * times};
  }
};

// What the operations of a packed batch depend on. Read rows are note rows and label rows; keys are counted for each
// query that sees them, its own included.
struct BatchCounts {
  int64_t notes = 0, labels = 0, tokens = 0, unshared_tokens = 0;
  int64_t read_rows = 0;
  double keys = 0, read_keys = 0, note_keys = 0;  // of all tokens as queries; of read rows; of note rows
};
BatchCounts count(const PackedBatch& batch);

// Forward and backward of one packed batch. first_pass: a forward pass to the note vectors before it, as with several
// micro-batches (the batch is the same; label rows are not read). recompute: all layers but the last are computed
// twice, but for their last product.
StepFlops batch_flops(const ModelConfig& config, const BatchCounts& batch, int64_t vocabulary, bool first_pass,
                      bool recompute = false);
inline StepFlops batch_flops(const ModelConfig& config, const PackedBatch& batch, int64_t vocabulary, bool first_pass,
                             bool recompute = false) {
  return batch_flops(config, count(batch), vocabulary, first_pass, recompute);
}

// InfoNCE of `rows` of `all` notes: similarities once forward; again, and two products, backward.
StepFlops infonce_flops(int64_t rows, int64_t all, int64_t dimensions);

}  // namespace notellm

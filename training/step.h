// One training step: from the step's number to the gradient of the global loss.
//
//     L = (L_cl + alpha · L_gen) / (1 + alpha)        over all pairs of the step, on all ranks and micro-batches
//
// 1. note vectors of every micro-batch; 2. gathered over the ranks; 3. InfoNCE on this rank's rows; 4. the gradient of
// all vectors reduced to their owners; 5. backward of every micro-batch with the gradient of its vectors and its token
// loss together (GradCache, arXiv 2101.06983, for the joint objective). With one micro-batch, 1 and 5 share the forward
// pass.
#pragma once

#include <array>
#include <vector>

#include "data_pipeline/sampler.h"
#include "losses/contrastive.h"
#include "model/transformer.h"
#include "runtime/mesh.h"
#include "training/config.h"
#include "training/flops.h"
#include "training/state.h"
#include "training/step_costs.h"

namespace notellm {

// Seconds of this rank in the parts of a step; waiting for other ranks counts where the wait is. On CUDA the host only
// enqueues, and waits for the GPU in the end: nearly all is `reduce`.
struct StepParts {
  double packing = 0;      // plan, pack
  double forward = 0;      // to the note vectors, of all passes
  double contrastive = 0;  // gather, InfoNCE and its gradient, reduce
  double token = 0;        // LM head and token loss, with gradients
  double backward = 0;
  double reduce = 0;  // all-reduce of the gradients, and the results

  StepParts& operator+=(const StepParts& other);
};

struct StepResult {
  double loss = 0, contrastive = 0, token = 0;  // of the whole step, the same on all ranks
  double positive_similarity = 0, negative_similarity = 0;
  int64_t notes = 0, labels = 0, tokens = 0, unshared_tokens = 0;
  StepFlops flops;
  StepParts seconds;  // of this rank
};

class TrainingStep {
 public:
  // Throws Error(usage): fewer pairs per step than data ranks, sizes that do not divide; Error(data): a note whose
  // sequence is longer than the context (which one), too few pairs.
  TrainingStep(const RunConfig& config, const NoteTable& notes, const PairTable& pairs, Mesh& mesh);

  // The loss of step `step` at the state's weights, and its gradient in the state's gradients (overwritten). tau: the
  // master value. On CUDA the gradient is there in the stream's order; the host waits once, for the loss, and has
  // prepared the next step's first batch by then. All ranks of the mesh call it.
  StepResult run(Stream& stream, int64_t step, TrainingState& state, float tau);

  int micro_batches() const { return micro_batches_; }
  const Arena& arena() const { return arena_; }

 private:
  // The notes of a step and where they go; the same on all ranks.
  struct Plan {
    int64_t step = -1;
    std::vector<Sampler::Slot> slots;
    std::vector<std::vector<std::vector<int32_t>>> lists;  // [data rank][micro-batch] slots
    std::vector<int64_t> ids, rows_of;                     // gathered order; notes of each rank
    std::vector<float> log_q;
    int64_t own_labels = 0, labels = 0;  // of the rank's tensor group; of all
  };
  // A micro-batch of a plan, packed and on its way to the device. Two take turns: while the device reads one, the other
  // is prepared.
  struct MicroBatch {
    MicroBatch(const RunConfig& config, const Transformer& transformer);
    int64_t step = -1;
    int pass = -1;
    std::vector<NoteExample> examples;
    PackedBatch batch;
    ModelInput input;
  };
  struct Pass;  // what run() keeps through a step

  void make_plan(int64_t step, Plan& plan) const;
  void add_rank(Plan& plan, int group, TensorPart part) const;
  void take_plan(int64_t step);
  void prepare(const Plan& plan, int pass, MicroBatch& batch) const;
  MicroBatch& take(int pass);
  void prepare_next(int pass);
  Tensor embed(Pass& p, MicroBatch& b, bool keep);
  PassHooks backward_hooks(Pass& p, bool last);
  void backward(Pass& p, MicroBatch& b, Tensor hidden, bool last);
  void add_up(const ContrastiveSums& sums, double token_sum, StepResult& result);
  int64_t arena_bytes();
  // One micro-batch is done in one pass; several first forward only, one after the other, then again with backward.
  int passes() const { return micro_batches_ == 1 ? 1 : 2 * micro_batches_; }

  const RunConfig& config_;
  const NoteTable& notes_;
  Mesh& mesh_;
  Sampler sampler_;
  Transformer transformer_;
  Contrastive contrastive_;
  Download losses_;
  int micro_batches_;
  Plan plan_, next_plan_;
  std::array<MicroBatch, 2> batches_;
  int turn_ = 0;
  Arena arena_;
};

}  // namespace notellm

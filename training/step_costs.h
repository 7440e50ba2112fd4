// What a training step takes and sends on one rank, from sizes alone: TrainingStep makes its arena by it, and plans
// (training/plan.h) ask it of ranks that are not there.
#pragma once

#include "data_pipeline/sampler.h"
#include "model/transformer_costs.h"
#include "runtime/mesh.h"
#include "training/config.h"
#include "training/flops.h"
#include "training/sharding.h"

namespace notellm {

int64_t ceil_div(int64_t a, int64_t b);

// Of a tensor group. Throws Error(usage): fewer pairs than groups.
int64_t pairs_per_group(const RunConfig& config, int data_ranks, int tensor_ranks);
// Of a step; with several, each is done twice: first forward alone.
int micro_batches(const RunConfig& config, int64_t pairs_per_group);
// Of a micro-batch's notes those whose vectors and rows of InfoNCE a rank of the tensor group computes: whole pairs.
FlatRange notes_of_part(int64_t notes, TensorPart part);
TransformerShape transformer_shape(const RunConfig& config, TensorPart part);

// How a step draws tasks. Without the token loss (loss.alpha 0) sequences end at the note.
SamplerConfig sampler_config(const RunConfig& config);

// The longest sequence that a step can draw, and the most labels of one. Throws Error(data): longer than the context.
struct Longest {
  int64_t tokens = 0, labels = 0;
};
Longest longest_sequence(const RunConfig& config, const NoteTable& notes);

// ---- memory ------------------------------------------------------------------------------------------------------

// Sizes of the largest micro-batch and of the whole step; larger ones than they are do no harm.
struct ArenaSizes {
  int micro_batches = 1;
  int64_t notes = 0, part_notes = 0;                // of the micro-batch; of them the rank's own
  int64_t tokens = 0, hidden_rows = 0, labels = 0;  // of the micro-batch
  int64_t own_notes = 0, own_labels = 0;            // of the step: the rank's; its tensor group's
  int64_t all_notes = 0;
  int64_t attention_floats = 0;  // workspace of attention
};
// For micro-batches of the longest notes. attention_floats is what the program's own kernels need.
ArenaSizes largest_sizes(const RunConfig& config, Longest longest, int data_ranks, int tensor_ranks);

struct StepMemory {
  int64_t results = 0;      // vectors, their gradients and norms, losses
  int64_t activations = 0;  // that a backward pass needs
  int64_t workspace = 0;    // most beyond them, InfoNCE aside
  int64_t vectors = 0;      // of InfoNCE: vectors of all ranks and their gradients, and what its rows take
  bool one_pass = true;     // InfoNCE comes while activations are there

  int64_t arena() const {
    return results +
           (one_pass ? activations + std::max(workspace, vectors) : std::max(activations + workspace, vectors));
  }
};
// vocabulary: rows of the whole embedding. The same bound for all ranks.
StepMemory step_memory(const RunConfig& config, int64_t vocabulary, int tensor_ranks, const ArenaSizes& sizes);

// ---- collectives -------------------------------------------------------------------------------------------------

inline constexpr int64_t step_sums = 11;  // what add_up() sums over all ranks, f64

// A rank's part of a step.
struct StepSizes {
  struct MicroBatches {
    BatchCounts counts;
    int64_t times = 1;  // so many that are alike
  };
  std::vector<MicroBatches> micro_batches;  // of its tensor group
  int64_t own_notes = 0, all_notes = 0;     // whose rows of InfoNCE it has; of all ranks

  int64_t count() const;  // of micro-batches
};
// Of a step of the training loop: temperature, step, update, signal.
struct StepTraffic {
  Traffic world, data, tensor, kv_copies;
};
StepTraffic step_traffic(const RunConfig& config, const ParameterLayout& layout, const ShardMap& shards,
                         MeshPlace place, const StepSizes& sizes);

}  // namespace notellm

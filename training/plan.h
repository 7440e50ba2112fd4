// What a run takes on each rank of a mesh, before there is one: memory by kind, bytes by collective, operations.
#pragma once

#include "training/note_statistics.h"
#include "training/step_costs.h"

namespace notellm {

// Bytes of one rank.
struct MemoryPlan {
  int64_t master_weights = 0, moments = 0;  // f32
  int64_t parameters = 0;                   // to compute with; in f32 without sharding the master weights serve
  int64_t gradients = 0;
  StepMemory step;
  int64_t snapshot = 0;  // for checkpoints; in the host's memory, also where the others are a GPU's

  int64_t state() const { return master_weights + moments + parameters + gradients; }
  int64_t total() const { return state() + step.arena(); }
};

struct Plan {
  MeshPlace place;
  StepSizes sizes;  // expected ones; memory is for the longest notes
  MemoryPlan memory;
  StepTraffic traffic;
  StepFlops flops;             // of a step on all ranks
  int64_t all_parameters = 0;  // of the whole model, padding aside
  // Elements of the rank's flat array: of a layer, and of what is in none; of its pieces of all.
  int64_t layer_elements = 0, other_elements = 0, own_elements = 0;
};

// The rank that has most to do: the last of a tensor group has most rows of InfoNCE.
constexpr MeshPlace fullest_place(int data_ranks, int tensor_ranks) {
  return {.data_ranks = data_ranks, .tensor_ranks = tensor_ranks, .tensor_rank = tensor_ranks - 1};
}

// Of one rank of the mesh. config: with the parallel section and train.micro_batch_pairs to plan for. Throws
// Error(usage), as a run does: sizes that do not divide, fewer pairs than tensor groups.
Plan make_plan(const RunConfig& config, const NoteStatistics& notes, MeshPlace place);
// Its memory alone, which is quick.
MemoryPlan plan_memory(const RunConfig& config, const NoteStatistics& notes, MeshPlace place);

// All parameters of a model, each counted once.
int64_t parameter_count(const ModelConfig& config, int64_t vocabulary);

}  // namespace notellm

// The ways to share a run out over so many GPUs, fastest first, as far as can be predicted.
#pragma once

#include <vector>

#include "training/prediction.h"

namespace notellm {

struct Choice {
  ParallelConfig parallel;
  int data_ranks = 1;
  int micro_batch_pairs = 0;
  int micro_batches = 1;
  MemoryPlan memory;
  Prediction prediction;
};

struct PlanSearch {
  std::vector<Choice> choices;  // that fit; by predicted time, then by memory
  int tried = 0, too_large = 0;
  int64_t smallest = 0;  // bytes a GPU of the one that takes least, of all tried
};

// Tensor groups of powers of 2 up to 64 that divide model and ranks; every sharding; recomputation or none; pairs of a
// micro-batch in powers of 2, at most `most_micro_batches` micro-batches. The rest of `config` stays.
inline constexpr int most_micro_batches = 64;
PlanSearch search_plans(const RunConfig& config, const NoteStatistics& notes, const ClusterConfig& cluster, int ranks);

}  // namespace notellm

#include "training/plan.h"

#include "training/checkpoint_writer.h"
#include "training/gradients.h"
#include "training/model_weights.h"
#include "training/optimizer.h"

namespace notellm {
namespace {

struct Pieces {
  ParameterLayout layout;
  ShardMap shards;

  Pieces(const RunConfig& config, int64_t vocabulary, MeshPlace place)
      : layout(config.model, vocabulary, {place.tensor_rank, place.tensor_ranks},
               config.parallel.sharding == Sharding::none ? 1 : place.data_ranks),
        shards(layout, config.parallel.sharding, place.data_rank, place.data_ranks) {}
};

MemoryPlan memory_of(const RunConfig& config, const NoteStatistics& notes, MeshPlace place, const Pieces& pieces) {
  MemoryPlan memory;
  memory.master_weights = Optimizer::memory_bytes(pieces.shards) / 3;
  memory.moments = Optimizer::memory_bytes(pieces.shards) - memory.master_weights;
  memory.parameters = ModelWeights::memory_bytes(pieces.layout, pieces.shards, config.compute());
  memory.gradients = Gradients::memory_bytes(pieces.layout, pieces.shards);
  memory.step = step_memory(config, notes.vocabulary, place.tensor_ranks,
                            largest_sizes(config, notes.longest, place.data_ranks, place.tensor_ranks));
  memory.snapshot = CheckpointWriter::memory_bytes(pieces.layout, pieces.shards);
  return memory;
}

// The pairs of a tensor group in micro-batches whose sizes differ by one pair at most.
StepSizes expected_sizes(const RunConfig& config, const NoteStatistics& notes, MeshPlace place) {
  const int64_t pairs = pairs_per_group(config, place.data_ranks, place.tensor_ranks);
  const int64_t batches = micro_batches(config, pairs), smaller = pairs / batches, larger = pairs % batches;
  const TensorPart part{place.tensor_rank, place.tensor_ranks};
  StepSizes sizes;
  sizes.all_notes = 2 * int64_t{config.train.pairs_per_step};
  for (const auto& [of_pairs, times] : {std::pair{smaller + 1, larger}, std::pair{smaller, batches - larger}}) {
    if (times == 0) continue;
    sizes.micro_batches.push_back({notes.expected(2 * of_pairs), times});
    sizes.own_notes += times * notes_of_part(2 * of_pairs, part).size();
  }
  return sizes;
}

}  // namespace

int64_t parameter_count(const ModelConfig& config, int64_t vocabulary) {
  int64_t count = 0;
  const ParameterLayout layout(config, vocabulary);
  for (const Parameter& p : layout.all()) count += p.size();
  return count;
}

MemoryPlan plan_memory(const RunConfig& config, const NoteStatistics& notes, MeshPlace place) {
  return memory_of(config, notes, place, Pieces(config, notes.vocabulary, place));
}

Plan make_plan(const RunConfig& config, const NoteStatistics& notes, MeshPlace place) {
  const Pieces pieces(config, notes.vocabulary, place);
  const auto& buckets = pieces.layout.buckets();
  const StepSizes sizes = expected_sizes(config, notes, place);
  StepFlops flops;
  // Where pairs do not divide, some groups have one less than this one.
  const double groups = static_cast<double>(config.train.pairs_per_step) /
                        static_cast<double>(pairs_per_group(config, place.data_ranks, place.tensor_ranks));
  for (const auto& [counts, times] : sizes.micro_batches) {
    const StepFlops one = batch_flops(config.model, counts, notes.vocabulary, sizes.count() > 1,
                                      config.parallel.recompute == Recompute::layer);
    flops += one * (static_cast<double>(times) * groups);
  }
  flops += infonce_flops(sizes.all_notes, sizes.all_notes, config.model.note_dim);
  return {.place = place,
          .sizes = sizes,
          .memory = memory_of(config, notes, place, pieces),
          .traffic = step_traffic(config, pieces.layout, pieces.shards, place, sizes),
          .flops = flops,
          .all_parameters = parameter_count(config.model, notes.vocabulary),
          .layer_elements = buckets[1].size(),
          .other_elements = buckets.front().size() + buckets.back().size(),
          .own_elements = pieces.shards.size()};
}

}  // namespace notellm

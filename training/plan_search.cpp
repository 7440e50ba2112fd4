#include "training/plan_search.h"

#include <algorithm>

namespace notellm {
namespace {

constexpr double gib = 1 << 30;

bool divides(const RunConfig& config, int tensor) {
  try {
    config_of_part(config.model, tensor);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Pairs of a micro-batch, 0: all at once.
std::vector<int> sizes_of_micro_batches(int64_t pairs) {
  std::vector<int> sizes = {0};
  for (int64_t size = 1; size < pairs; size *= 2)
    if (ceil_div(pairs, size) <= most_micro_batches) sizes.push_back(static_cast<int>(size));
  return sizes;
}

}  // namespace

PlanSearch search_plans(const RunConfig& config, const NoteStatistics& notes, const ClusterConfig& cluster, int ranks) {
  const auto room = static_cast<int64_t>((cluster.gpu.memory_gib - cluster.gpu.reserved_gib) * gib);
  PlanSearch search;
  const auto consider = [&](const RunConfig& c, int data_ranks) {
    const MeshPlace place = fullest_place(data_ranks, c.parallel.tensor);
    const MemoryPlan memory = plan_memory(c, notes, place);
    ++search.tried;
    search.smallest = search.tried == 1 ? memory.total() : std::min(search.smallest, memory.total());
    if (memory.total() > room) {
      ++search.too_large;
      return;
    }
    const Plan plan = make_plan(c, notes, place);
    search.choices.push_back({c.parallel, data_ranks, c.train.micro_batch_pairs, static_cast<int>(plan.sizes.count()),
                              memory, predict(c, notes, plan, cluster)});
  };
  RunConfig c = config;
  for (int tensor = 1; tensor <= std::min(64, ranks); tensor *= 2) {
    const int data_ranks = ranks / tensor;
    if (ranks % tensor != 0 || !divides(config, tensor) || config.train.pairs_per_step < data_ranks) continue;
    for (Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::parameters})
      for (Recompute recompute : {Recompute::none, Recompute::layer})
        for (int pairs : sizes_of_micro_batches(pairs_per_group(config, data_ranks, tensor))) {
          if (data_ranks == 1 && sharding != Sharding::none) continue;  // nothing to shard
          c.parallel = {tensor, sharding, recompute};
          c.train.micro_batch_pairs = pairs;
          consider(c, data_ranks);
        }
  }
  std::ranges::stable_sort(search.choices, {}, [](const Choice& choice) {
    return std::pair(choice.prediction.seconds(), choice.memory.total());
  });
  return search;
}

}  // namespace notellm

// Arrays of the pieces that ranks keep, put together to the whole model's.
#pragma once

#include "training/state.h"

namespace notellm::test {

// pieces: f32 [state.shards.size()] in host memory; whole: in the order of a layout without parts or shards. By all
// ranks; each gets all.
inline void put_together(const TrainingState& state, const ParameterLayout& layout, Tensor pieces, Tensor whole) {
  std::fill_n(whole.as<float>(), whole.size(), 0.0f);
  const Mesh& mesh = state.mesh;
  state.shards.for_runs(state.layout, [&](const ShardMap::Run& run) {
    const Parameter& p = run.parameter;
    // Of those who keep the same numbers the first gives them.
    if (!state.shards.sharded() && mesh.data.rank() != 0) return;
    if (mesh.tensor.rank() % p.copies != 0) return;
    float* to = layout.at(p.name).view(whole).as<float>();
    for_row_runs(p, run.first, run.count, [&](int64_t from, int64_t at, int64_t elements) {
      std::copy_n(pieces.as<float>() + run.at + at, elements, to + from);
    });
  });
  mesh.world.all_reduce_sum("test.whole", whole);
}

}  // namespace notellm::test

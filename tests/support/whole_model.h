// Arrays of the pieces that ranks keep, put together to the whole model's.
#pragma once

#include "training/state.h"

namespace notellm::test {

// pieces: f32 [state.shards.size()] in host memory; whole: in the order of a layout without parts or shards. By all
// ranks; each gets all.
inline void put_together(const TrainingState& state, const ParameterLayout& layout, Tensor pieces, Tensor whole) {
  std::fill_n(whole.as<float>(), whole.size(), 0.0f);
  state.shards.for_own_runs(state.layout, [&](const ShardMap::Run& run) {
    float* to = layout.at(run.parameter.name).view(whole).as<float>();
    for_row_runs(run.parameter, run.first, run.count, [&](int64_t from, int64_t at, int64_t elements) {
      std::copy_n(pieces.as<float>() + run.at + at, elements, to + from);
    });
  });
  state.mesh.world.all_reduce_sum("test.whole", whole);
}

}  // namespace notellm::test

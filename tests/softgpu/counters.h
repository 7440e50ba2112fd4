// What kernels did, added up over launches.
#pragma once

#include "tests/softgpu/warp.h"

namespace softgpu {

void add_tallies(const Program& program, const std::vector<Tally>& tallies);
void count_launch(const Program& program, uint64_t threads);

}  // namespace softgpu

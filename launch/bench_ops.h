// The ops of kernels/ as `bench kernels` calls them, with random numbers in the configuration's shapes. On all ranks.
#pragma once

#include "launch/op_timer.h"

namespace notellm {

// What is bound by memory, on a tile of `rows` rows.
std::vector<BenchRow> time_memory_ops(OpTimer& timer, const RunConfig& config, int64_t vocabulary, int64_t rows);
// Attention over rows / 8 notes, at most 256; InfoNCE of 2 · rows note vectors against 8 · rows.
std::vector<BenchRow> time_product_ops(OpTimer& timer, const RunConfig& config, int64_t rows);

}  // namespace notellm

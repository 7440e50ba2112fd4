// The two benchmarks of `notellm bench`.
#pragma once

#include <string>

#include "runtime/communicator.h"
#include "training/config.h"

namespace notellm {

struct BenchStepOptions {
  int warmup = 2, steps = 10;
  bool synthetic = false;  // notes of random tokens instead of data.shards
  bool json = false;
};

// Times training steps of the configuration and prints, on rank 0, rates, the parts of a step, and how much of the
// speed of large matrix products it reaches. All ranks call it. Throws Error as train() does for sizes and shards.
void bench_step(const RunConfig& config, const BenchStepOptions& options, Communicator& ranks);

// Times the matrix products of the configuration's model and each op on a tile, and prints them beside what large
// products and plain copies reach. All ranks call it.
void bench_kernels(const RunConfig& config, Communicator& ranks);

// The shards of the configuration's prompt lengths and vocabulary with random tokens: 4,096 notes, 65,536 pairs.
struct Shards;
Shards synthetic_shards(const RunConfig& config);

}  // namespace notellm

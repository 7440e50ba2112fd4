// The benchmarks of `notellm bench`. All ranks call them; rank 0 prints, and writes `json` where it is not empty.
#pragma once

#include <string>

#include "runtime/communicator.h"
#include "training/config.h"

namespace notellm {

struct BenchStepOptions {
  int warmup = 2, steps = 10;
  bool synthetic = false;  // notes of random tokens instead of data.shards
  std::string json;
};

// Times training steps of the configuration: rates, the parts of a step, and how much of the speed of large matrix
// products, and of the GPU's peak, it reaches. Throws Error as train() does for sizes and shards.
void bench_step(const RunConfig& config, const BenchStepOptions& options, Communicator& ranks);

struct BenchOptions {
  int rows = 0;  // of a tile; 0: the device's (model/tiles.h)
  std::string json;
};

// Times the matrix products of the configuration's model on a tile, forward and backward, beside what large products
// reach.
void bench_gemm(const RunConfig& config, const BenchOptions& options, Communicator& ranks);

// Times each op on a tile, beside what plain copies and large products reach.
void bench_kernels(const RunConfig& config, const BenchOptions& options, Communicator& ranks);

// The shards of the configuration's prompt lengths and vocabulary with random tokens: 4,096 notes, 65,536 pairs.
struct Shards;
Shards synthetic_shards(const RunConfig& config);

}  // namespace notellm

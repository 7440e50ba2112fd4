// Speeds that this machine reaches, as the floor that other times are compared with. On all ranks at once, as they run.
#pragma once

#include <chrono>

#include "runtime/communicator.h"
#include "runtime/dtype.h"

namespace notellm {

// Seconds of one call of `work`: the fastest of `repeats` calls, after one that warms up.
template <class Work>
double fastest_seconds(int repeats, const Work& work) {
  work();
  double fastest = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    fastest = std::min(fastest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return fastest;
}

// This rank's GFLOP/s of the product of two 1024 × 1024 matrices of this type, while the other ranks do the same.
double measure_gemm_gflops(Communicator& ranks, DType dtype);

// Bytes per second that this rank reads and writes when it copies memory larger than the caches (read + write counted),
// while the other ranks do the same.
double measure_copy_bandwidth(Communicator& ranks);

// Copies `bytes` bytes within buffers of this thread team, all threads: what an op that moves as much must take at
// least.
void copy_memory(void* to, const void* from, int64_t bytes);

}  // namespace notellm

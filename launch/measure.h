// Speeds that this machine reaches, as the floor that other times are compared with. On all ranks at once, as they run.
#pragma once

#include <algorithm>
#include <limits>

#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/stopwatch.h"

namespace notellm {

template <class Work>
double seconds_of(const Work& work) {
  const Stopwatch watch;
  work();
  return watch.seconds();
}

// Seconds of one call of `work`: the fastest of as many calls as begin within `span` seconds, but at least five, after
// one that warms up. The fastest, because other programs only ever make it slower.
template <class Work>
double fastest_within(double span, const Work& work) {
  work();
  double fastest = std::numeric_limits<double>::infinity(), spent = 0;
  for (int calls = 0; calls < 5 || spent < span; ++calls) {
    const double seconds = seconds_of(work);
    spent += seconds;
    fastest = std::min(fastest, seconds);
  }
  return fastest;
}
// … the fastest of `repeats` calls: for collectives, which all ranks must call equally often.
template <class Work>
double fastest_of(int repeats, const Work& work) {
  work();
  double fastest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) fastest = std::min(fastest, seconds_of(work));
  return fastest;
}

// This rank's GFLOP/s of the product of two square matrices of this type, while the other ranks do the same; and their
// size: large enough for a good share of what the device can do.
double measure_gemm_gflops(Communicator& ranks, DType dtype, Device device = Device::cpu);
constexpr int64_t measured_product(Device device) { return device == Device::cpu ? 1024 : 4096; }

// Bytes per second that this rank reads and writes when it copies memory larger than the caches (read + write counted),
// while the other ranks do the same.
double measure_copy_bandwidth(Communicator& ranks);

// Copies `bytes` bytes within buffers of this thread team, all threads: what an op that moves as much must take at
// least.
void copy_memory(void* to, const void* from, int64_t bytes);

}  // namespace notellm

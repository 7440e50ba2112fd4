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

// … of one call of `work` on `stream`. On CUDA a call only enqueues, and the host sees the end of a wait late: by up to
// 0.1 ms after 5 ms, 0.2 ms after 20 ms (runtime/gpu.cpp). So as many calls as take 20 ms together, at most 1,024, are
// enqueued and waited for once, and the time divided: too much by 1 % at most, 2 % where a call takes 5 µs. Launches
// overlap with what runs before them, as in a step.
template <class Work>
double seconds_of_call(Stream& stream, double span, const Work& work) {
  if (!stream.on_gpu()) return fastest_within(span, work);
  constexpr double enough_seconds = 0.02;
  constexpr int most_calls = 1024;
  int calls = 1;
  const auto all_calls = [&] {
    for (int i = 0; i < calls; ++i) work();
    stream.synchronize();
  };
  all_calls();  // loads the kernel, chooses the algorithm
  while (calls < most_calls && seconds_of(all_calls) < enough_seconds) calls *= 2;
  return fastest_within(span, all_calls) / calls;
}

// This rank's speed of the product of two square matrices of n rows, while the other ranks do the same: n = 1024 on the
// CPU; on CUDA the first of 1024, 2048, 4096 and 8192 that takes a millisecond, or the last.
struct LargeProduct {
  int64_t n = 0;
  double flops_per_second = 0;
};
LargeProduct measure_large_product(Communicator& ranks, DType dtype, Device device = Device::cpu);

// Bytes per second that this rank reads and writes when it copies memory of the device larger than the caches (read +
// write counted), while the other ranks do the same.
double measure_copy_bandwidth(Communicator& ranks, Device device = Device::cpu);

// Copies `from` to `to`, on the CPU with all threads where that is worth it: what an op that moves as much must take at
// least.
void copy_memory(Stream& stream, Tensor from, Tensor to);

}  // namespace notellm

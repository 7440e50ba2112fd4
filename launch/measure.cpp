#include "launch/measure.h"

#include <omp.h>

#include <cstring>

#include "kernels/gemm.h"
#include "runtime/memory.h"
#include "runtime/random.h"

namespace notellm {

double measure_gemm_gflops(Communicator& ranks, DType dtype, Device device) {
  const int64_t n = measured_product(device);
  const auto matrix = [&] {
    Buffer buffer(n * n * size_of(dtype));
    for (int64_t i = 0; i < n * n; ++i) {
      const auto value = static_cast<float>(random_unit(1, i, 0) - 0.5);
      if (dtype == DType::bf16)
        static_cast<bf16*>(buffer.data())[i] = bf16(value);
      else
        static_cast<float*>(buffer.data())[i] = value;
    }
    return on_device(device, std::move(buffer));
  };
  const Buffer a = matrix(), b = matrix(), c(n * n * size_of(dtype), memory_of(device));
  const auto square = [&](const Buffer& buffer) { return buffer.tensor(dtype, {n, n}); };
  Stream stream(device);
  ranks.barrier("measure products");
  const double seconds = fastest_within(0.4, [&] {
    gemm(stream, square(a), Transpose::no, square(b), Transpose::yes, square(c));
    stream.synchronize();
  });
  return 2.0 * n * n * n / seconds / 1e9;
}

void copy_memory(void* to, const void* from, int64_t bytes) {
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t begin = bytes * thread / threads, end = bytes * (thread + 1) / threads;
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, end - begin);
  }
}

double measure_copy_bandwidth(Communicator& ranks) {
  constexpr int64_t bytes = 256 << 20;
  Buffer from(bytes), to(bytes);
  copy_memory(from.data(), to.data(), bytes);  // so that pages are there, each where its thread runs
  ranks.barrier("measure memory");
  const double seconds = fastest_within(0.3, [&] { copy_memory(to.data(), from.data(), bytes); });
  return 2.0 * bytes / seconds;
}

}  // namespace notellm

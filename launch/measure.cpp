#include "launch/measure.h"

#include <omp.h>

#include <cstring>

#include "kernels/gemm.h"
#include "runtime/memory.h"
#include "runtime/random.h"

namespace notellm {

double measure_gemm_gflops(Communicator& ranks, DType dtype) {
  constexpr int64_t n = 1024;
  Buffer a(n * n * size_of(dtype)), b(n * n * size_of(dtype)), c(n * n * size_of(dtype));
  for (const Buffer* matrix : {&a, &b})
    for (int64_t i = 0; i < n * n; ++i) {
      const auto value = static_cast<float>(random_unit(1, i, 0) - 0.5);
      if (dtype == DType::bf16)
        static_cast<bf16*>(matrix->data())[i] = bf16(value);
      else
        static_cast<float*>(matrix->data())[i] = value;
    }
  Stream stream;
  ranks.barrier("measure products");
  const double seconds = fastest_within(0.4, [&] {
    gemm(stream, a.tensor(dtype, {n, n}), Transpose::no, b.tensor(dtype, {n, n}), Transpose::yes,
         c.tensor(dtype, {n, n}));
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

#include "launch/measure.h"

#include <omp.h>

#include <cstring>

#include "kernels/checks.h"
#include "kernels/gemm.h"
#include "launch/operands.h"

namespace notellm {

LargeProduct measure_large_product(Communicator& ranks, DType dtype, Device device) {
  constexpr double large_seconds = 1e-3;
  constexpr int64_t largest = 8192;
  Stream stream(device);
  for (int64_t n = 1024;; n *= 2) {
    Operands operands(device);
    const Tensor a = operands.random(dtype, {n, n}), b = operands.random(dtype, {n, n}),
                 c = operands.zeros(dtype, {n, n});
    ranks.barrier("measure products");
    const double seconds = seconds_of_call(stream, 0.4, [&] { gemm(stream, a, Transpose::no, b, Transpose::yes, c); });
    if (device == Device::cpu || n == largest || ranks.max("a product's seconds", seconds) >= large_seconds)
      return {n, 2.0 * n * n * n / seconds};
  }
}

void copy_memory(Stream& stream, Tensor from, Tensor to) {
  if (stream.on_gpu()) return copy(stream, from, to);
  const int64_t bytes = from.bytes();
#pragma omp parallel if (bytes > 4 * parallel_elements)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t begin = bytes * thread / threads, end = bytes * (thread + 1) / threads;
    std::memcpy(static_cast<char*>(to.data) + begin, static_cast<const char*>(from.data) + begin, end - begin);
  }
}

double measure_copy_bandwidth(Communicator& ranks, Device device) {
  constexpr int64_t bytes = 256 << 20;
  Operands operands(device);
  Stream stream(device);
  const Tensor from = operands.zeros(DType::f32, {bytes / 4}), to = operands.zeros(DType::f32, {bytes / 4});
  copy_memory(stream, to, from);  // so that pages are there, each where its thread runs
  ranks.barrier("measure memory");
  return 2.0 * bytes / seconds_of_call(stream, 0.3, [&] { copy_memory(stream, from, to); });
}

}  // namespace notellm

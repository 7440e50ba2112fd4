#include <algorithm>

#include "kernels/convert.h"
#include "kernels/cuda_common.cuh"

namespace notellm::gpu {
namespace {

constexpr int threads = 256;

// One thread `n` elements, the last one what is left.
template <class From, class To, int n>
__global__ void __launch_bounds__(threads) convert_kernel(const From* from, To* to, int64_t size) {
  int64_t i = (blockIdx.x * int64_t{threads} + threadIdx.x) * n;
  if (i + n > size) {
    for (; i < size; ++i) to[i] = from_float<To>(to_float(from[i]));
    return;
  }
  const Pack<From, n> x = load<n>(from + i);
  Pack<To, n> y;
#pragma unroll
  for (int k = 0; k < n; ++k) y.x[k] = from_float<To>(to_float(x.x[k]));
  store(to + i, y);
}

template <class From, class To, int n>
void launch(Stream& stream, const From* from, To* to, int64_t size) {
  const auto blocks = static_cast<unsigned>(ceil_div(size, threads * n));
  convert_kernel<From, To, n><<<blocks, threads, 0, native(stream)>>>(from, to, size);
  check_launch("convert_kernel");
}

}  // namespace

void convert(Stream& stream, Tensor from, Tensor to) {
  if (from.size() == 0) return;
  with_float_type("from", from, [&]<class From>(From) {
    with_float_type("to", to, [&]<class To>(To) {
      // The wider type 16 bytes at a time.
      constexpr int n = 16 / static_cast<int>(std::max(sizeof(From), sizeof(To)));
      const From* x = from.as<From>();
      To* y = to.as<To>();
      aligned(x, y) ? launch<From, To, n>(stream, x, y, from.size()) : launch<From, To, 1>(stream, x, y, from.size());
    });
  });
}

}  // namespace notellm::gpu

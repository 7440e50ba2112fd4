// What the CUDA kernels share: 16-byte accesses, bf16, sums over a warp and a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/checks.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/gpu.h"
#include "runtime/tensor.h"

namespace notellm::gpu {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

inline cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// bf16 on the device, without the host type's constructor: the rounding is the hardware's, to nearest even as well.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

// `n` elements in one memory access of a thread, or in several of 16 bytes; by default 16 bytes of them. The address
// must be a multiple of the size, or of 16.
template <class T, int n = 16 / static_cast<int>(sizeof(T))>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Pack {
  static constexpr int size = n;
  T x[n];
};
template <int n, class T>
__device__ Pack<T, n> load(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <class T, int n>
__device__ void store(T* to, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}
template <class T>
__device__ Pack<T> load_pack(const T* from) {
  return load<Pack<T>::size>(from);
}
template <class T>
__device__ void store_pack(T* to, const Pack<T>& pack) {
  store(to, pack);
}
// Whether packs of 16 bytes can begin at these addresses, and whether rows of `cols` elements of T there hold whole
// ones.
template <class... Pointer>
bool aligned(const Pointer*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}
template <class T, class... Pointer>
bool whole_packs(int64_t cols, const Pointer*... rows) {
  return cols % Pack<T>::size == 0 && aligned(rows...);
}

// A grid over rows × items, a thread each, without a division in the kernel: row() and item() are what a thread has,
// to be compared with the numbers of both. 256 threads a block, or a few less.
struct RowGrid {
  dim3 grid, block;
  static constexpr int threads = 256;

  RowGrid(int64_t rows, int64_t items) {
    const int64_t pieces = ceil_div(items, threads), width = ceil_div(items, pieces), height = threads / width;
    block = dim3(static_cast<unsigned>(width), static_cast<unsigned>(height));
    grid = dim3(static_cast<unsigned>(ceil_div(rows, height)), static_cast<unsigned>(pieces));
  }
  __device__ static int64_t row() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }
  __device__ static int item() { return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); }
};

// The sum over the warp's lanes, the same bits in each of them; all lanes take part.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int other = warp_size / 2; other > 0; other /= 2) x += __shfl_xor_sync(all_lanes, x, other);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int other = warp_size / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, other));
  return x;
}

// The same in double: both halves of the bits go through the shuffle.
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int other = warp_size / 2; other > 0; other /= 2) x += __shfl_xor_sync(all_lanes, x, other);
  return x;
}

}  // namespace notellm::gpu

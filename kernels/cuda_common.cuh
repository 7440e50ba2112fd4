// What the CUDA kernels share: 16-byte accesses, bf16, sums over a warp and a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

// 16 bytes of elements: one memory access of a thread. The address must be a multiple of 16.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T x[size];
};
template <class T>
__device__ Pack<T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
__device__ void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}
// Whether rows of `cols` elements, beginning at a multiple of 16 bytes, can be read in packs.
template <class T>
constexpr bool whole_packs(int64_t cols) {
  return cols % Pack<T>::size == 0;
}

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

}  // namespace notellm::gpu

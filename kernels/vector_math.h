// Short vectors of f32 as wide as the machine's registers, by GCC's vector extensions (any CPU), exp on them, and the
// reductions of a softmax.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "runtime/dtype.h"

namespace notellm {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
constexpr int vector_lanes = vector_bytes / 4;

using vfloat = float __attribute__((vector_size(vector_bytes)));
using vint = int32_t __attribute__((vector_size(vector_bytes)));
using vuint = uint32_t __attribute__((vector_size(vector_bytes)));

// vector_lanes elements from anywhere in memory (no alignment needed), and back.
inline vfloat vload(const float* from) {
  vfloat v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
// By intrinsics, because g++ 12 makes five instructions of what is one in AVX-512; maskz, because it warns of the
// others.
inline vfloat vload(const bf16* from) {
  uint16_t __attribute__((vector_size(vector_bytes / 2))) half;
  std::memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
  const vuint wide = (vuint)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);
#else
  const vuint wide = __builtin_convertvector(half, vuint);
#endif
  return (vfloat)(wide << 16);
}
// 2 · vector_lanes bf16, or the first n of them and zeros, those of even places and those of odd ones apart: as 32-bit
// lanes they need a shift and a mask, where vload needs two steps for each half.
struct vpair {
  vfloat even, odd;
};
[[gnu::always_inline]] inline vpair vload_apart(const bf16* from, int64_t n = 2 * vector_lanes) {
  static_assert(std::endian::native == std::endian::little);
  vuint pairs = {};
  std::memcpy(&pairs, from, static_cast<size_t>(n) * sizeof(bf16));
  return {(vfloat)(pairs << 16), (vfloat)(pairs & 0xffff0000u)};
}
inline void vstore(float* to, vfloat v) { std::memcpy(to, &v, sizeof v); }
// Rounds as bf16(float) does.
inline void vstore(bf16* to, vfloat v) {
  using vhalf = uint16_t __attribute__((vector_size(vector_bytes / 2)));
  const vuint u = (vuint)v;
  const vuint rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vuint chosen = v == v ? rounded : (u >> 16) | 0x40u;
#if defined(__AVX512F__)
  const auto half = (vhalf)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)chosen);
#else
  const auto half = __builtin_convertvector(chosen, vhalf);
#endif
  std::memcpy(to, &half, sizeof half);
}
// Two vectors, one behind the other. Where the CPU has an instruction for it, bf16 below 2^-126 come out as zeros.
template <class T>
inline void vstore_two(T* to, vfloat first, vfloat second) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, bf16>) {
    const auto both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    std::memcpy(to, &both, sizeof both);
    return;
  }
#endif
  vstore(to, first);
  vstore(to + vector_lanes, second);
}
// Asks for memory that is wanted soon; locality: 3 into the first cache, 2 into the second. It and what does nothing
// else must be inlined: g++ takes calls of a function that only prefetches for calls without effect, and leaves them
// out.
template <int locality>
[[gnu::always_inline]] inline void prefetch(const void* from, int64_t bytes) {
  constexpr int64_t line_bytes = 64;
  for (int64_t byte = 0; byte < bytes; byte += line_bytes)
    __builtin_prefetch(static_cast<const char*>(from) + byte, 0, locality);
}
inline vfloat vbroadcast(float value) { return vfloat{} + value; }

// static_cast<T>(value), for f32 or bf16, in the form that GCC vectorises in an `omp simd` loop: a bf16 constructed in
// the loop itself counts as a variable in memory and stops it. Choosing before the shift is a fifth faster than after
// it.
template <class T>
inline T rounded(float value) {
  return value;
}
template <>
inline bf16 rounded<bf16>(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t up = u + 0x7fffu + ((u >> 16) & 1u);
  bf16 result;
  result.bits = static_cast<uint16_t>((value == value ? up : u | 0x400000u) >> 16);
  return result;
}

namespace detail {
// One text for one float and for a vector of them, so that a loop's tail rounds as its body does.
// x = n·ln 2 + r, n whole, |r| ≤ ln 2 / 2: e^r by the polynomial of Cephes' expf (S. Moshier, netlib.org/cephes), and
// the bits of n.
template <class Float, class Int>
struct ReducedExp {
  Float of_r;
  Int n;
};
template <class Float, class Int>
inline ReducedExp<Float, Int> reduced_exp(Float x) {
  constexpr float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer, which stands in the low bits
  const Float shifted = x * 1.44269504088896341f + shift;
  const Float n = shifted - shift;
  const Float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return {p, __builtin_bit_cast(Int, shifted) - std::bit_cast<int32_t>(shift)};
}

template <class Float, class Int>
inline Float exp(Float x) {
  const Float zero = {};
  x = x < -104.0f ? zero - 104.0f : x;  // exp is 0 from here down, infinite from there up; NaN fails both and passes
  x = x > 89.0f ? zero + 89.0f : x;
  const auto [p, n] = reduced_exp<Float, Int>(x);
  const Int half = n >> 1;  // 2^n in two halves, because n reaches 128 and, for subnormal results, −150
  return p * __builtin_bit_cast(Float, (half + 127) << 23) * __builtin_bit_cast(Float, (n - half + 127) << 23);
}

template <class Float, class Unsigned>
inline Float exp_or_zero(Float x) {
  const auto [p, n] = reduced_exp<Float, Unsigned>(x);
  const Float product = p * __builtin_bit_cast(Float, (n << 23) + 0x3f800000u);
  return x < -87.33654475f ? Float{} : product;
}
}  // namespace detail

// e^x, wrong by at most 2 units in the last place over the whole range, subnormal results included; 0 for −inf, inf
// from 88.73 up, NaN for NaN. The scalar form vectorises in an `omp simd` loop.
inline vfloat vexp(vfloat x) { return detail::exp<vfloat, vint>(x); }
inline float vexp(float x) { return detail::exp<float, int32_t>(x); }

// e^x for x ≤ 88, as a softmax needs it, but 0 below ln 2^−126: it never makes a subnormal number, for which some
// CPUs take over 100 cycles.
inline vfloat exp_or_zero(vfloat x) { return detail::exp_or_zero<vfloat, vuint>(x); }
inline float exp_or_zero(float x) { return detail::exp_or_zero<float, uint32_t>(x); }

// The logistic function.
inline vfloat logistic(vfloat x) { return 1.0f / (1.0f + vexp(-x)); }
inline float logistic(float x) { return 1.0f / (1.0f + vexp(-x)); }

// The largest of n numbers, −inf when there is none; a NaN is passed over.
inline float max_of(const float* x, int64_t n) {
  vfloat lanes = vbroadcast(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + vector_lanes <= n; i += vector_lanes) {
    const vfloat v = vload(x + i);
    lanes = v > lanes ? v : lanes;
  }
  float best = lanes[0];
  for (int lane = 1; lane < vector_lanes; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// Σ exp(x − shift); x − shift ≤ 88
inline float sum_of_exp(const float* x, float shift, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += exp_or_zero(x[i] - shift);
  return sum;
}

}  // namespace notellm

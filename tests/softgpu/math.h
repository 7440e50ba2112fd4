// The approximate functions of the PTX ISA, here accurate to about a unit in the last place: a GPU's differ from these
// in the last bits, which tolerances have to leave room for.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace softgpu {

inline float flush(float x) {  // .ftz
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// 2^x by x = n + r, |r| ≤ 1/2, and the Taylor series of e^(r ln 2) to its 8th power (error below 2^-27).
inline float exp2_approx(float x) {
  const float limited = x < -151.0f ? -151.0f : x > 129.0f ? 129.0f : x;
  const float shifted = limited + 12582912.0f, n = shifted - 12582912.0f;
  const float r = (limited - n) * 0.693147180559945f;
  float p = 1.0f / 40320;
  p = p * r + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t whole = std::bit_cast<int32_t>(shifted) - 0x4b400000, half = whole >> 1;
  const float scaled = p * std::bit_cast<float>((half + 127) << 23) * std::bit_cast<float>((whole - half + 127) << 23);
  return x != x ? x : scaled;
}

}  // namespace softgpu

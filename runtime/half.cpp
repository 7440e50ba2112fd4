#include "runtime/half.h"

#include <cmath>

namespace notellm {
namespace {
constexpr uint32_t exponent_shift = 23 - 10;  // f32 has 23 bits of fraction, f16 10
constexpr uint32_t exponent_difference = (127 - 15) << 23;
}  // namespace

float to_float(f16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits >> 15) << 31, rest = value.bits & 0x7fffu;
  if (rest < 0x400) return std::copysign(static_cast<float>(rest) * 0x1p-24f, sign ? -1.0f : 1.0f);  // subnormal
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ff) << exponent_shift);
  return std::bit_cast<float>(sign | ((rest << exponent_shift) + exponent_difference));
}

f16 to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 31 << 15, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00)};  // NaN
  const float size = std::abs(value);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};  // halfway to the next that there would be
  if (size < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)))};
  const uint32_t rounded = rest + 0xfff + (rest >> exponent_shift & 1);
  return {static_cast<uint16_t>(sign | (rounded - exponent_difference) >> exponent_shift)};
}

}  // namespace notellm

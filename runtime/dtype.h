// Element types and the conversion between f32 and bf16 (round to nearest even; NaN stays NaN). f16 is a type of files
// alone: nothing computes in it. Both kinds of panels are bf16 in another order, for products (kernels/gemm_panels.h).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace notellm {

enum class DType : uint8_t { f32, bf16, i32, i64, f64, f16, bf16_panels, bf16_gated_panels };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
    case DType::f16:
    case DType::bf16_panels:
    case DType::bf16_gated_panels:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::i64:
    case DType::f64:
      return 8;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::f64:
      return "f64";
    case DType::f16:
      return "f16";
    case DType::bf16_panels:
      return "bf16 in panels";
    case DType::bf16_gated_panels:
      return "bf16 in gated panels";
  }
  return "?";
}

// The upper half of an f32.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : rounded);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE 754 half precision; runtime/half.h converts.
struct f16 {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};

}  // namespace notellm

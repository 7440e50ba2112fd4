// What arithmetic instructions compute for one lane, and the handlers that do it for a warp.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/softgpu/decode.h"
#include "tests/softgpu/math.h"
#include "tests/softgpu/warp.h"

namespace softgpu {

using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;

// A register's element: 16-bit values stand in the low half of 32 bits.
template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_same_v<T, double>, double, u64>,
                                std::conditional_t<std::is_same_v<T, float>, float, u32>>;
template <class T>
T in(Slot<T> x) {
  return static_cast<T>(x);
}
template <class T>
Slot<T> out(T x) {
  if constexpr (std::is_floating_point_v<T>)
    return x;
  else
    return static_cast<Slot<T>>(static_cast<std::make_unsigned_t<T>>(x));
}

// Handlers from functions without state: F()(a, …).
template <class D, class A, class F>
void unary(Warp& w, const Instruction& i, u32 mask) {
  const auto* a = w.read<Slot<A>>(i.a);
  store_lanes(w.write<Slot<D>>(i.d), mask, [&](int l) { return out<D>(F{}(in<A>(a[l]))); });
}
template <class D, class A, class B, class F>
void binary(Warp& w, const Instruction& i, u32 mask) {
  const auto* a = w.read<Slot<A>>(i.a);
  const auto* b = w.read<Slot<B>>(i.b);
  store_lanes(w.write<Slot<D>>(i.d), mask, [&](int l) { return out<D>(F{}(in<A>(a[l]), in<B>(b[l]))); });
}
template <class D, class A, class B, class C, class F>
void ternary(Warp& w, const Instruction& i, u32 mask) {
  const auto* a = w.read<Slot<A>>(i.a);
  const auto* b = w.read<Slot<B>>(i.b);
  const auto* c = w.read<Slot<C>>(i.c);
  store_lanes(w.write<Slot<D>>(i.d), mask, [&](int l) { return out<D>(F{}(in<A>(a[l]), in<B>(b[l]), in<C>(c[l]))); });
}

template <class T>
using Un = std::make_unsigned_t<T>;

#define SOFTGPU_FUNCTION(name, ...) \
  struct name {                     \
    template <class... X>           \
    auto operator()(X... x) const { \
      return apply(x...);           \
    }                               \
    template <class T>              \
    static auto apply __VA_ARGS__   \
  }
SOFTGPU_FUNCTION(
    Copy, (T a) { return a; });
SOFTGPU_FUNCTION(
    Not, (T a) { return static_cast<T>(~a); });
SOFTGPU_FUNCTION(
    Negate, (T a) { return static_cast<T>(std::is_integral_v<T> ? T(0) - a : -a); });
SOFTGPU_FUNCTION(
    Subtract, (T a, T b) { return static_cast<T>(a - b); });
SOFTGPU_FUNCTION(
    Add, (T a, T b) { return static_cast<T>(a + b); });
SOFTGPU_FUNCTION(
    And, (T a, T b) { return static_cast<T>(a & b); });
SOFTGPU_FUNCTION(
    Or, (T a, T b) { return static_cast<T>(a | b); });
SOFTGPU_FUNCTION(
    Xor, (T a, T b) { return static_cast<T>(a ^ b); });
SOFTGPU_FUNCTION(
    Popcount, (T a) { return static_cast<u32>(std::popcount(a)); });
SOFTGPU_FUNCTION(
    LeadingZeros, (T a) { return static_cast<u32>(std::countl_zero(a)); });
#undef SOFTGPU_FUNCTION

struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return a * b;
    else
      return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
  }
};
struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (sizeof(T) == 8) {
      using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 64);
    } else {
      using Wide = std::conditional_t<std::is_signed_v<T>, s64, u64>;
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 8 * sizeof(T));
    }
  }
};
template <class W>
struct MultiplyWide {
  template <class T>
  W operator()(T a, T b) const {
    return static_cast<W>(static_cast<W>(a) * static_cast<W>(b));
  }
};
// Integer division by 0 gives all ones, as NVIDIA's does; PTX leaves it open.
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return a / b;
    else if (b == 0)
      return static_cast<T>(~T(0));
    else if constexpr (std::is_signed_v<T>)
      return b == -1 ? static_cast<T>(Un<T>(0) - static_cast<Un<T>>(a)) : static_cast<T>(a / b);
    else
      return a / b;
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      return b == -1 ? T(0) : static_cast<T>(a % b);
    else
      return a % b;
  }
};
struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return a != a ? b : b != b ? a : a < b ? a : b < a ? b : std::signbit(a) ? a : b;
    else
      return b < a ? b : a;
  }
};
struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return a != a ? b : b != b ? a : a > b ? a : b > a ? b : std::signbit(a) ? b : a;
    else
      return a < b ? b : a;
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>)
      return std::fabs(a);
    else
      return a < 0 ? static_cast<T>(Un<T>(0) - static_cast<Un<T>>(a)) : a;
  }
};
struct Fma {
  template <class T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
// fma rounded down, up or to zero, as the library's expf asks for: the nearest value, and one step from there where it
// lies on the wrong side of the exact one. (f32: a·b + c is exact in 113 bits, or so far off that its side is right.)
enum class Toward { minus_infinity, plus_infinity, zero };
template <Toward toward>
struct DirectedFma {
  float operator()(float a, float b, float c) const {
    const __float128 exact = static_cast<__float128>(a) * b + c;
    const float near = std::fma(a, b, c);
    const bool down = toward == Toward::minus_infinity || (toward == Toward::zero && exact > 0);
    if (std::isinf(near) && std::isfinite(a) && std::isfinite(b) && std::isfinite(c))
      return (near > 0) == down ? std::copysign(std::numeric_limits<float>::max(), near) : near;
    if (!(near == near) || exact == near) return near;
    if (down && near > exact) return std::nextafter(near, -INFINITY);
    if (!down && near < exact) return std::nextafter(near, INFINITY);
    return near;
  }
};
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b) + static_cast<u64>(c));
  }
};
struct MultiplyHighAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(static_cast<Un<T>>(MultiplyHigh{}(a, b)) + static_cast<Un<T>>(c));
  }
};
template <class W>
struct MultiplyWideAdd {
  template <class T>
  W operator()(T a, T b, W c) const {
    return static_cast<W>(static_cast<u64>(static_cast<W>(a) * static_cast<W>(b)) + static_cast<u64>(c));
  }
};
struct ShiftLeft {
  template <class T>
  T operator()(T a, u32 b) const {
    return b >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << b);
  }
};
struct ShiftRight {
  template <class T>
  T operator()(T a, u32 b) const {
    constexpr u32 bits = 8 * sizeof(T);
    if (b >= bits) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : T(0);
    return static_cast<T>(a >> b);
  }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return T(1) / a;
  }
};
struct Root {
  template <class T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct ReciprocalRoot {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
  }
};
struct Exp2 {
  float operator()(float a) const { return exp2_approx(a); }
};
struct Log2 {
  float operator()(float a) const { return std::log2(a); }
};
struct Sine {
  float operator()(float a) const { return std::sin(a); }
};
struct Cosine {
  float operator()(float a) const { return std::cos(a); }
};
struct Tanh {
  float operator()(float a) const { return std::tanh(a); }
};
template <class F>
struct Flushed {  // .ftz: subnormal inputs and results are zeros
  template <class... T>
  float operator()(T... x) const {
    return flush(F{}(flush(x)...));
  }
};
template <class F>
struct Saturated {  // .sat
  template <class... T>
  auto operator()(T... x) const {
    const auto y = F{}(x...);
    return y != y || y < 0 ? decltype(y)(0) : y > 1 ? decltype(y)(1) : y;
  }
};
// rcp.approx.ftz.f64: of the upper half of the bits of both, without subnormals (PTX ISA, rcp.approx.ftz.f64).
struct CoarseReciprocal {
  static double upper(double x) { return std::bit_cast<double>(std::bit_cast<u64>(x) & 0xffffffff00000000u); }
  static double normal(double x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0, x) : x; }
  double operator()(double a) const { return normal(upper(1.0 / normal(upper(a)))); }
};
struct ReverseBits {
  template <class T>
  T operator()(T a) const {
    constexpr int bits = 8 * sizeof(T);
    T r = 0;
    for (int k = 0; k < bits; ++k) r |= (a >> k & 1) << (bits - 1 - k);
    return r;
  }
};
// bfind: the place of the highest bit that differs from the sign, or of the shift that brings it to the top; none: all
// ones.
template <bool shift_amount>
struct FindBit {
  template <class T>
  u32 operator()(T a) const {
    const u32 bits = a < 0 ? ~static_cast<u32>(a) : static_cast<u32>(a);
    if (bits == 0) return ~0u;
    const auto zeros = static_cast<u32>(std::countl_zero(bits));
    return shift_amount ? zeros : 31 - zeros;
  }
};
// shf: most = 31 is .wrap, which takes the shift modulo 32; 32 is .clamp.
template <u32 most>
u32 funnel_shift(u32 c) {
  return most == 31 ? c & 31 : std::min(c, most);
}
template <u32 most>
struct FunnelLeft {
  u32 operator()(u32 a, u32 b, u32 c) const {
    return static_cast<u32>(((u64{b} << 32 | a) << funnel_shift<most>(c)) >> 32);
  }
};
template <u32 most>
struct FunnelRight {
  u32 operator()(u32 a, u32 b, u32 c) const { return static_cast<u32>((u64{b} << 32 | a) >> funnel_shift<most>(c)); }
};
struct Permute {  // prmt, default mode: each nibble of c chooses one of the 8 bytes; its top bit replicates the sign
  u32 operator()(u32 a, u32 b, u32 c) const {
    const u64 bytes = u64{b} << 32 | a;
    u32 r = 0;
    for (int k = 0; k < 4; ++k) {
      const u32 selector = c >> 4 * k & 15;
      u32 byte = bytes >> 8 * (selector & 7) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;
      r |= byte << 8 * k;
    }
    return r;
  }
};
template <class T>
struct ExtractField {  // bfe
  T operator()(T a, u32 b, u32 c) const {
    constexpr int bits = 8 * sizeof(T);
    const int position = b & 255, length = c & 255;
    if (length == 0) return 0;
    const bool sign = std::is_signed_v<T> && (static_cast<Un<T>>(a) >> std::min(position + length - 1, bits - 1) & 1);
    Un<T> r = sign ? static_cast<Un<T>>(~Un<T>(0)) : Un<T>(0);
    for (int k = 0; k < length && k < bits; ++k) {
      const bool bit = position + k < bits ? static_cast<Un<T>>(a) >> (position + k) & 1 : sign;
      r = static_cast<Un<T>>((r & ~(Un<T>(1) << k)) | Un<T>(bit) << k);
    }
    return static_cast<T>(r);
  }
};

// One handler for each element type, chosen by the name of the type.
struct Handlers {
  Handler u16_, s16_, u32_, s32_, u64_, s64_, f32_, f64_;
  Handler of(const std::string& type) const {
    if (type == "u16" || type == "b16") return u16_;
    if (type == "s16") return s16_;
    if (type == "u32" || type == "b32") return u32_;
    if (type == "s32") return s32_;
    if (type == "u64" || type == "b64") return u64_;
    if (type == "s64") return s64_;
    if (type == "f32") return f32_;
    if (type == "f64") return f64_;
    return nullptr;
  }
};

// The flags but the type, which is the last, must be among these.
inline bool only(const ParsedInstruction& from, std::initializer_list<const char*> allowed) {
  for (size_t k = 0; k + 1 < from.flags.size(); ++k)
    if (std::none_of(allowed.begin(), allowed.end(), [&](const char* a) { return from.flags[k] == a; })) return false;
  return true;
}

// d and `count` operands of one type.
inline void operands(Decoder& decoder, const ParsedInstruction& from, Instruction& to, const std::string& type,
                     size_t count) {
  to.d = decoder.destination(from.operands.at(0));
  to.a = decoder.typed(from.operands.at(1), type);
  if (count > 1) to.b = decoder.typed(from.operands.at(2), type);
  if (count > 2) to.c = decoder.typed(from.operands.at(3), type);
  if (from.operands.size() != count + 1) decoder.fail(from, "another number of operands");
}

}  // namespace softgpu

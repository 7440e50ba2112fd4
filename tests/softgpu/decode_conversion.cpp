// cvt.
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/softgpu/decode.h"
#include "tests/softgpu/math.h"
#include "tests/softgpu/warp.h"

namespace softgpu {
namespace {

uint16_t to_bf16(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the NaN that NVIDIA's conversion gives
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// A register's value as its type, and back. 16-bit values stand in the low half of 32 bits.
struct Bf16 {};
template <class T>
struct Element {
  using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static T load(Slot x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::bit_cast<T>(x);
    else
      return static_cast<T>(x);
  }
  static Slot store(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::bit_cast<Slot>(x);
    else
      return static_cast<Slot>(x);  // sign-extended into a wider register, as PTX says
  }
};
template <>
struct Element<Bf16> {
  using Slot = uint32_t;
  static float load(uint32_t x) { return std::bit_cast<float>(x << 16); }
  static uint32_t store(float x) { return to_bf16(x); }
};

enum Rounding : uint8_t { none, nearest, toward_zero, down, up };

template <class F>
F rounded(F x, Rounding r) {
  switch (r) {
    case nearest:
      return std::nearbyint(x);
    case toward_zero:
      return std::trunc(x);
    case down:
      return std::floor(x);
    case up:
      return std::ceil(x);
    case none:
      return x;
  }
  return x;
}

// Out of range: the nearest value; NaN: 0, or only the top bit where 64 bits take part (PTX ISA 9.0, cvt).
template <class D, class F>
D to_integer(F x, Rounding r) {
  x = rounded(x, r);
  constexpr bool wide = sizeof(D) == 8 || sizeof(F) == 8;
  if (x != x) return wide ? static_cast<D>(std::make_unsigned_t<D>(1) << (8 * sizeof(D) - 1)) : D(0);
  constexpr D least = std::numeric_limits<D>::min(), most = std::numeric_limits<D>::max();
  if (x <= static_cast<F>(least)) return least;
  if (x >= static_cast<F>(most)) return most;
  return static_cast<D>(x);
}

// flags: the rounding; count: saturate to [0, 1] (floats) or to the type's range (integers).
template <class D, class S>
void convert(Warp& w, const Instruction& i, uint32_t mask) {
  using From = Element<S>;
  using To = Element<D>;
  const auto* a = w.read<typename From::Slot>(i.a);
  const auto rounding = static_cast<Rounding>(i.flags);
  store_lanes(w.write<typename To::Slot>(i.d), mask, [&](int l) -> typename To::Slot {
    const auto x = From::load(a[l]);
    if constexpr (std::is_integral_v<D>) {
      if constexpr (std::is_floating_point_v<decltype(x)>)
        return To::store(to_integer<D>(x, rounding));
      else {
        if (i.count) {
          if (std::cmp_less(x, std::numeric_limits<D>::min())) return To::store(std::numeric_limits<D>::min());
          if (std::cmp_greater(x, std::numeric_limits<D>::max())) return To::store(std::numeric_limits<D>::max());
        }
        return To::store(static_cast<D>(x));
      }
    } else if constexpr (std::is_same_v<D, Bf16>) {
      return To::store(static_cast<float>(x));
    } else {
      D y = static_cast<D>(x);
      if constexpr (std::is_floating_point_v<decltype(x)>)
        if (std::is_same_v<D, std::remove_const_t<decltype(x)>>) y = rounded(y, rounding);
      if (i.count) y = y != y || y < 0 ? D(0) : y > 1 ? D(1) : y;
      return To::store(y);
    }
  });
}

// cvt.rn.bf16x2.f32 d, a, b: a in the upper half, b in the lower.
void convert_pair(Warp& w, const Instruction& i, uint32_t mask) {
  const float *a = w.read<float>(i.a), *b = w.read<float>(i.b);
  store_lanes(w.write<uint32_t>(i.d), mask, [&](int l) { return uint32_t{to_bf16(a[l])} << 16 | to_bf16(b[l]); });
}

template <class D>
Handler from_type(const std::string& s) {
  if (s == "u8") return convert<D, uint8_t>;
  if (s == "s8") return convert<D, int8_t>;
  if (s == "u16") return convert<D, uint16_t>;
  if (s == "s16") return convert<D, int16_t>;
  if (s == "u32") return convert<D, uint32_t>;
  if (s == "s32") return convert<D, int32_t>;
  if (s == "u64") return convert<D, uint64_t>;
  if (s == "s64") return convert<D, int64_t>;
  if (s == "f32") return convert<D, float>;
  if (s == "f64") return convert<D, double>;
  if (s == "bf16") return convert<D, Bf16>;
  return nullptr;
}
Handler conversion(const std::string& d, const std::string& s) {
  if (d == "u8") return from_type<uint8_t>(s);
  if (d == "s8") return from_type<int8_t>(s);
  if (d == "u16") return from_type<uint16_t>(s);
  if (d == "s16") return from_type<int16_t>(s);
  if (d == "u32") return from_type<uint32_t>(s);
  if (d == "s32") return from_type<int32_t>(s);
  if (d == "u64") return from_type<uint64_t>(s);
  if (d == "s64") return from_type<int64_t>(s);
  if (d == "f32") return from_type<float>(s);
  if (d == "f64") return from_type<double>(s);
  if (d == "bf16" && s == "f32") return convert<Bf16, float>;
  return nullptr;
}

}  // namespace

bool decode_conversion(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.opcode != "cvt" || from.flags.size() < 2) return false;
  const std::string& d = from.flags[from.flags.size() - 2];
  const std::string& s = from.flags.back();
  const bool from_float = s[0] == 'f' || s[0] == 'b';
  for (size_t k = 0; k + 2 < from.flags.size(); ++k) {
    const std::string& flag = from.flags[k];
    if (flag == "rni")
      to.flags = nearest;
    else if (flag == "rzi")
      to.flags = toward_zero;
    else if (flag == "rmi")
      to.flags = down;
    else if (flag == "rpi")
      to.flags = up;
    else if (flag == "sat")
      to.count = 1;
    else if (flag != "rn")
      return false;
  }
  if (from_float && (d[0] == 'u' || d[0] == 's') && to.flags == none) return false;
  to.d = decoder.destination(from.operands.at(0));
  to.a = decoder.typed(from.operands.at(1), s == "u8" || s == "s8" ? "b32" : s);
  if (d == "bf16x2" && s == "f32") {
    to.b = decoder.operand(from.operands.at(2), 4);
    to.run = convert_pair;
    return to.count == 0;
  }
  // A result narrower than its register: sign- or zero-extended to the register's size.
  const bool widens =
      from.operands[0].kind == Text::Kind::reg && decoder.register_bytes(from.operands[0]) == 8 && bytes_of_type(d) < 8;
  if (widens) return false;
  if (from.operands[1].kind == Text::Kind::reg && decoder.register_bytes(from.operands[1]) == 8 && bytes_of_type(s) < 8)
    return false;
  to.run = conversion(d, s);
  return to.run != nullptr;
}

}  // namespace softgpu

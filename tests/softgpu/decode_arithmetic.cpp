// Moves, integer and float arithmetic, comparisons, bits.
#include <algorithm>
#include <bit>
#include <cmath>

#include "tests/softgpu/decode.h"
#include "tests/softgpu/math.h"
#include "tests/softgpu/warp.h"

namespace softgpu {
namespace {

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
  if constexpr (std::is_floating_point_v<T>) return x;
  else return static_cast<Slot<T>>(static_cast<std::make_unsigned_t<T>>(x));
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

#define SOFTGPU_FUNCTION(name, ...)         \
  struct name {                             \
    template <class... X>                   \
    auto operator()(X... x) const {         \
      return apply(x...);                   \
    }                                       \
    template <class T>                      \
    static auto apply __VA_ARGS__           \
  }
SOFTGPU_FUNCTION(Copy, (T a) { return a; });
SOFTGPU_FUNCTION(Not, (T a) { return static_cast<T>(~a); });
SOFTGPU_FUNCTION(Negate, (T a) { return static_cast<T>(std::is_integral_v<T> ? T(0) - a : -a); });
SOFTGPU_FUNCTION(Subtract, (T a, T b) { return static_cast<T>(a - b); });
SOFTGPU_FUNCTION(Add, (T a, T b) { return static_cast<T>(a + b); });
SOFTGPU_FUNCTION(And, (T a, T b) { return static_cast<T>(a & b); });
SOFTGPU_FUNCTION(Or, (T a, T b) { return static_cast<T>(a | b); });
SOFTGPU_FUNCTION(Xor, (T a, T b) { return static_cast<T>(a ^ b); });
SOFTGPU_FUNCTION(Popcount, (T a) { return static_cast<u32>(std::popcount(a)); });
SOFTGPU_FUNCTION(LeadingZeros, (T a) { return static_cast<u32>(std::countl_zero(a)); });
#undef SOFTGPU_FUNCTION

struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return a * b;
    else return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
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
    if constexpr (std::is_floating_point_v<T>) return a / b;
    else if (b == 0) return static_cast<T>(~T(0));
    else if constexpr (std::is_signed_v<T>) return b == -1 ? static_cast<T>(Un<T>(0) - static_cast<Un<T>>(a)) : static_cast<T>(a / b);
    else return a / b;
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>) return b == -1 ? T(0) : static_cast<T>(a % b);
    else return a % b;
  }
};
struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return a != a ? b : b != b ? a : a < b ? a : b < a ? b : std::signbit(a) ? a : b;
    else return b < a ? b : a;
  }
};
struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return a != a ? b : b != b ? a : a > b ? a : b > a ? b : std::signbit(a) ? b : a;
    else return a < b ? b : a;
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>) return std::fabs(a);
    else return a < 0 ? static_cast<T>(Un<T>(0) - static_cast<Un<T>>(a)) : a;
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
  T operator()(T a) const { return T(1) / a; }
};
// rcp.approx.ftz.f64: of the upper half of the bits of both, without subnormals (PTX ISA, rcp.approx.ftz.f64).
struct CoarseReciprocal {
  static double upper(double x) { return std::bit_cast<double>(std::bit_cast<u64>(x) & 0xffffffff00000000u); }
  static double normal(double x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0, x) : x; }
  double operator()(double a) const { return normal(upper(1.0 / normal(upper(a)))); }
};
struct Root {
  template <class T>
  T operator()(T a) const { return std::sqrt(a); }
};
struct ReciprocalRoot {
  template <class T>
  T operator()(T a) const { return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a))); }
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
  float operator()(T... x) const { return flush(F{}(flush(x)...)); }
};
template <class F>
struct Saturated {  // .sat
  template <class... T>
  auto operator()(T... x) const {
    const auto y = F{}(x...);
    return y != y || y < 0 ? decltype(y)(0) : y > 1 ? decltype(y)(1) : y;
  }
};
struct ReverseBits {
  u32 operator()(u32 a) const {
    u32 r = 0;
    for (int k = 0; k < 32; ++k) r |= (a >> k & 1) << (31 - k);
    return r;
  }
};
// bfind: the place of the highest bit that differs from the sign, or of the shift that brings it to the top; none: all ones.
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
struct FunnelLeft {
  u32 operator()(u32 a, u32 b, u32 c) const { return static_cast<u32>(((u64{b} << 32 | a) << (c & 31)) >> 32); }
};
struct FunnelRight {
  u32 operator()(u32 a, u32 b, u32 c) const { return static_cast<u32>((u64{b} << 32 | a) >> (c & 31)); }
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

// lop3: the truth table stands in immediate.
void logic3(Warp& w, const Instruction& i, u32 mask) {
  const u32 *a = w.read<u32>(i.a), *b = w.read<u32>(i.b), *c = w.read<u32>(i.c);
  const auto table = static_cast<u32>(i.immediate);
  store_lanes(w.write<u32>(i.d), mask, [&](int l) {
    u32 r = 0;
    for (u32 k = 0; k < 8; ++k)
      if (table >> k & 1) r |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    return r;
  });
}
// bfi: d = b with the bits c.. of length immediate operand e replaced by a's low ones; e is operands[more].
void insert_field(Warp& w, const Instruction& i, u32 mask) {
  const u32 *a = w.read<u32>(i.a), *b = w.read<u32>(i.b), *c = w.read<u32>(i.c);
  const u32* e = w.read<u32>(w.run->program->operands[i.more]);
  store_lanes(w.write<u32>(i.d), mask, [&](int l) {
    const u32 position = c[l] & 255, length = e[l] & 255;
    if (position > 31) return b[l];
    const u32 field = static_cast<u32>(((length >= 32 ? u64{1} << 32 : u64{1} << length) - 1) << position);
    return (b[l] & ~field) | (a[l] << position & field);
  });
}

// selp and slct on bits: c is a predicate's word.
template <class T>
void select(Warp& w, const Instruction& i, u32 mask) {
  const T *a = w.read<T>(i.a), *b = w.read<T>(i.b);
  const u32* c = w.read<u32>(i.c);
  store_lanes(w.write<T>(i.d), mask, [&](int l) { return c[l] ? a[l] : b[l]; });
}

enum Comparison : uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
template <class T, Comparison op>
bool compare(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    const bool unordered = a != a || b != b;
    if constexpr (op == num) return !unordered;
    if constexpr (op == nan) return unordered;
    if constexpr (op == ne) return !unordered && a != b;
    if constexpr (op >= equ)
      return unordered || (op == equ ? a == b : op == neu ? a != b : op == ltu ? a < b : op == leu ? a <= b : op == gtu ? a > b : a >= b);
  }
  return op == eq ? a == b : op == ne ? a != b : op == lt ? a < b : op == le ? a <= b : op == gt ? a > b : a >= b;
}
// setp d|q, a, b {, c}: count: 0 alone, 1 and, 2 or, 3 xor with c; flags: bit 0: c negated, bit 1: q there.
template <class T, Comparison op>
void set_predicate(Warp& w, const Instruction& i, u32 mask) {
  const auto* a = w.read<Slot<T>>(i.a);
  const auto* b = w.read<Slot<T>>(i.b);
  if (i.count == 0 && !(i.flags & 2)) {
    store_lanes(w.write<u32>(i.d), mask, [&](int l) { return compare<T, op>(in<T>(a[l]), in<T>(b[l])) ? ~0u : 0u; });
    return;
  }
  const u32* c = i.count ? w.read<u32>(i.c) : nullptr;
  const auto combined = [&](u32 r, int l) {
    if (!c) return r;
    const u32 other = i.flags & 1 ? ~c[l] : c[l];
    return i.count == 1 ? r & other : i.count == 2 ? r | other : r ^ other;
  };
  u32 p[lanes], q[lanes];
  for (int l = 0; l < lanes; ++l) {
    const u32 r = compare<T, op>(in<T>(a[l]), in<T>(b[l])) ? ~0u : 0u;
    p[l] = combined(r, l);
    q[l] = combined(~r, l);
  }
  store_lanes(w.write<u32>(i.d), mask, [&](int l) { return p[l]; });
  if (i.flags & 2) store_lanes(w.write<u32>(w.run->program->operands[i.more]), mask, [&](int l) { return q[l]; });
}

// mov of parts: {a, b} into one register of twice the bits, or back. bytes: of a part; operands from `more` on.
void pack_parts(Warp& w, const Instruction& i, u32 mask) {
  const Operand* o = w.run->program->operands.data() + i.more;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    u64 value = 0;
    for (int k = 0; k < i.count; ++k) {
      const u64 part = i.bytes == 8 ? w.read<u64>(o[k])[l] : w.read<u32>(o[k])[l];
      value |= (i.bytes == 2 ? part & 0xffff : part) << 8 * i.bytes * k;
    }
    if (i.bytes * i.count == 8) w.write<u64>(i.d)[l] = value;
    else w.write<u32>(i.d)[l] = static_cast<u32>(value);
  }
}
void unpack_parts(Warp& w, const Instruction& i, u32 mask) {
  const Operand* o = w.run->program->operands.data() + i.more;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    const u64 value = i.bytes * i.count == 8 ? w.read<u64>(i.a)[l] : w.read<u32>(i.a)[l];
    for (int k = 0; k < i.count; ++k)
      w.write<u32>(o[k])[l] = static_cast<u32>(value >> 8 * i.bytes * k) & (i.bytes == 2 ? 0xffff : 0xffffffff);
  }
}

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
template <class F> constexpr Handler un_float[] = {unary<float, float, F>, unary<double, double, F>};
template <class F>
constexpr Handlers integer_unary = {unary<u16, u16, F>, unary<s16, s16, F>, unary<u32, u32, F>, unary<s32, s32, F>,
                                    unary<u64, u64, F>, unary<s64, s64, F>, nullptr, nullptr};
template <class F>
constexpr Handlers any_unary = {unary<u16, u16, F>, unary<s16, s16, F>, unary<u32, u32, F>, unary<s32, s32, F>,
                                unary<u64, u64, F>, unary<s64, s64, F>, unary<float, float, F>, unary<double, double, F>};
template <class F>
constexpr Handlers any_binary = {binary<u16, u16, u16, F>, binary<s16, s16, s16, F>, binary<u32, u32, u32, F>,
                                 binary<s32, s32, s32, F>, binary<u64, u64, u64, F>, binary<s64, s64, s64, F>,
                                 binary<float, float, float, F>, binary<double, double, double, F>};
template <class F>
constexpr Handlers integer_binary = {binary<u16, u16, u16, F>, binary<s16, s16, s16, F>, binary<u32, u32, u32, F>,
                                     binary<s32, s32, s32, F>, binary<u64, u64, u64, F>, binary<s64, s64, s64, F>,
                                     nullptr, nullptr};
template <class F>
constexpr Handlers shift = {binary<u16, u16, u32, F>, binary<s16, s16, u32, F>, binary<u32, u32, u32, F>,
                            binary<s32, s32, u32, F>, binary<u64, u64, u32, F>, binary<s64, s64, u32, F>, nullptr, nullptr};
template <class F>
constexpr Handlers integer_ternary = {ternary<u16, u16, u16, u16, F>, ternary<s16, s16, s16, s16, F>,
                                      ternary<u32, u32, u32, u32, F>, ternary<s32, s32, s32, s32, F>,
                                      ternary<u64, u64, u64, u64, F>, ternary<s64, s64, s64, s64, F>, nullptr, nullptr};
template <Comparison op>
constexpr Handlers comparison = {set_predicate<u16, op>, set_predicate<s16, op>, set_predicate<u32, op>,
                                 set_predicate<s32, op>, set_predicate<u64, op>, set_predicate<s64, op>,
                                 set_predicate<float, op>, set_predicate<double, op>};

constexpr Handlers wide_products = {binary<u32, u16, u16, MultiplyWide<u32>>, binary<s32, s16, s16, MultiplyWide<s32>>,
                                    binary<u64, u32, u32, MultiplyWide<u64>>, binary<s64, s32, s32, MultiplyWide<s64>>,
                                    nullptr, nullptr, nullptr, nullptr};
constexpr Handlers wide_sums = {ternary<u32, u16, u16, u32, MultiplyWideAdd<u32>>,
                                ternary<s32, s16, s16, s32, MultiplyWideAdd<s32>>,
                                ternary<u64, u32, u32, u64, MultiplyWideAdd<u64>>,
                                ternary<s64, s32, s32, s64, MultiplyWideAdd<s64>>, nullptr, nullptr, nullptr, nullptr};

// The flags but the type, which is the last, must be among these.
bool only(const ParsedInstruction& from, std::initializer_list<const char*> allowed) {
  for (size_t k = 0; k + 1 < from.flags.size(); ++k)
    if (std::none_of(allowed.begin(), allowed.end(), [&](const char* a) { return from.flags[k] == a; })) return false;
  return true;
}

void operands(Decoder& decoder, const ParsedInstruction& from, Instruction& to, const std::string& type, size_t count) {
  to.d = decoder.destination(from.operands.at(0));
  to.a = decoder.typed(from.operands.at(1), type);
  if (count > 1) to.b = decoder.typed(from.operands.at(2), type);
  if (count > 2) to.c = decoder.typed(from.operands.at(3), type);
  if (from.operands.size() != count + 1) decoder.fail(from, "another number of operands");
}

template <class F>
Handler float_binary(const ParsedInstruction& from) {
  const bool ftz = has_flag(from, "ftz"), sat = has_flag(from, "sat");
  if (from.flags.back() == "f64") return ftz || sat ? nullptr : Handler(binary<double, double, double, F>);
  if (ftz && sat) return nullptr;
  return ftz ? binary<float, float, float, Flushed<F>> : sat ? binary<float, float, float, Saturated<F>>
                                                             : binary<float, float, float, F>;
}
template <class F>
Handler float_unary(const ParsedInstruction& from) {
  if (from.flags.back() == "f64") return has_flag(from, "ftz") ? nullptr : Handler(unary<double, double, F>);
  return has_flag(from, "ftz") ? unary<float, float, Flushed<F>> : unary<float, float, F>;
}
Handler float_fma(const ParsedInstruction& from) {
  const bool ftz = has_flag(from, "ftz"), sat = has_flag(from, "sat");
  const bool down = has_flag(from, "rm"), up = has_flag(from, "rp"), zero = has_flag(from, "rz");
  if (down || up || zero) {
    if (ftz || sat || from.flags.back() != "f32") return nullptr;
    return down ? ternary<float, float, float, float, DirectedFma<Toward::minus_infinity>>
           : up ? ternary<float, float, float, float, DirectedFma<Toward::plus_infinity>>
                : ternary<float, float, float, float, DirectedFma<Toward::zero>>;
  }
  if (from.flags.back() == "f64") return ftz || sat ? nullptr : Handler(ternary<double, double, double, double, Fma>);
  if (ftz && sat) return nullptr;
  return ftz ? ternary<float, float, float, float, Flushed<Fma>> : sat ? ternary<float, float, float, float, Saturated<Fma>>
                                                                        : ternary<float, float, float, float, Fma>;
}

bool decode_float(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  const bool directed = has_flag(from, "rm") || has_flag(from, "rp") || has_flag(from, "rz");
  if (!only(from, {"rn", "ftz", "sat", "approx", "full", "rm", "rp", "rz"}) || (directed && op != "fma")) return false;
  size_t count = 2;
  if (op == "add") to.run = float_binary<Add>(from);
  else if (op == "sub") to.run = float_binary<Subtract>(from);
  else if (op == "mul") to.run = float_binary<Multiply>(from);
  else if (op == "div") to.run = float_binary<Divide>(from);
  else if (op == "min") to.run = float_binary<Minimum>(from);
  else if (op == "max") to.run = float_binary<Maximum>(from);
  else if (op == "fma" || op == "mad") to.run = float_fma(from), count = 3;
  else {
    count = 1;
    if (op == "neg") to.run = float_unary<Negate>(from);
    else if (op == "abs") to.run = float_unary<Absolute>(from);
    else if (op == "rcp" && type == "f64" && has_flag(from, "ftz")) to.run = unary<double, double, CoarseReciprocal>;
    else if (op == "rcp") to.run = float_unary<Reciprocal>(from);
    else if (op == "sqrt") to.run = float_unary<Root>(from);
    else if (op == "rsqrt") to.run = float_unary<ReciprocalRoot>(from);
    else if (type == "f32" && op == "ex2") to.run = float_unary<Exp2>(from);
    else if (type == "f32" && op == "lg2") to.run = float_unary<Log2>(from);
    else if (type == "f32" && op == "sin") to.run = float_unary<Sine>(from);
    else if (type == "f32" && op == "cos") to.run = float_unary<Cosine>(from);
    else if (type == "f32" && op == "tanh") to.run = float_unary<Tanh>(from);
    else return false;
    if (op != "neg" && op != "abs") to.kind = InstructionClass::special;
  }
  if (op == "div") to.kind = InstructionClass::special;
  if (!to.run) return false;
  operands(decoder, from, to, type, count);
  return true;
}

bool decode_product(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  const bool adds = from.opcode == "mad";
  if (!only(from, {"lo", "hi", "wide"})) return false;
  if (has_flag(from, "wide")) {
    to.run = (adds ? wide_sums : wide_products).of(type);
    if (!to.run) return false;
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.typed(from.operands.at(2), type);
    if (adds) to.c = decoder.operand(from.operands.at(3), bytes_of_type(type) == 4 ? 8 : 4);
    return true;
  }
  const bool high = has_flag(from, "hi");
  if (adds) to.run = (high ? integer_ternary<MultiplyHighAdd> : integer_ternary<MultiplyAdd>).of(type);
  else to.run = (high ? integer_binary<MultiplyHigh> : integer_binary<Multiply>).of(type);
  if (!to.run) return false;
  operands(decoder, from, to, type, adds ? 3 : 2);
  return true;
}

bool decode_integer(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  if (op == "mul" || op == "mad") return decode_product(decoder, from, to);
  static const std::map<std::string, const Handlers*> two = {
      {"add", &integer_binary<Add>},     {"sub", &integer_binary<Subtract>}, {"div", &integer_binary<Divide>},
      {"rem", &integer_binary<Remainder>}, {"min", &integer_binary<Minimum>}, {"max", &integer_binary<Maximum>},
      {"and", &integer_binary<And>},     {"or", &integer_binary<Or>},         {"xor", &integer_binary<Xor>}};
  static const std::map<std::string, const Handlers*> one = {
      {"not", &integer_unary<Not>}, {"neg", &integer_unary<Negate>}, {"abs", &integer_unary<Absolute>}};
  if (!only(from, {})) return false;
  if (const auto found = two.find(op); found != two.end()) {
    to.run = type == "pred" ? found->second->of("b32") : found->second->of(type);
    if (!to.run) return false;
    operands(decoder, from, to, type, 2);
    return true;
  }
  if (const auto found = one.find(op); found != one.end()) {
    to.run = type == "pred" ? found->second->of("b32") : found->second->of(type);
    if (!to.run) return false;
    operands(decoder, from, to, type, 1);
    return true;
  }
  if (op == "shl" || op == "shr") {
    to.run = (op == "shl" ? shift<ShiftLeft> : shift<ShiftRight>).of(type);
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.operand(from.operands.at(2), 4);
    return to.run != nullptr;
  }
  return false;
}

bool decode_bits(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  const bool wide = bytes_of_type(type) == 8;
  if (op == "popc" || op == "clz") {
    if (op == "popc") to.run = wide ? unary<u32, u64, Popcount> : unary<u32, u32, Popcount>;
    else to.run = wide ? unary<u32, u64, LeadingZeros> : unary<u32, u32, LeadingZeros>;
    operands(decoder, from, to, type, 1);
    return true;
  }
  if (op == "brev" && !wide) {
    to.run = unary<u32, u32, ReverseBits>;
    operands(decoder, from, to, type, 1);
    return true;
  }
  if (op == "bfind" && !wide) {
    const bool amount = has_flag(from, "shiftamt");
    if (type == "u32") to.run = amount ? unary<u32, u32, FindBit<true>> : unary<u32, u32, FindBit<false>>;
    else if (type == "s32") to.run = amount ? unary<u32, s32, FindBit<true>> : unary<u32, s32, FindBit<false>>;
    operands(decoder, from, to, type, 1);
    return to.run != nullptr && from.flags.size() == (amount ? 2u : 1u);
  }
  if (op == "bfe") {
    to.run = type == "u32" ? ternary<u32, u32, u32, u32, ExtractField<u32>> : type == "s32" ? ternary<s32, s32, u32, u32, ExtractField<s32>>
           : type == "u64" ? ternary<u64, u64, u32, u32, ExtractField<u64>> : nullptr;
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.operand(from.operands.at(2), 4);
    to.c = decoder.operand(from.operands.at(3), 4);
    return to.run != nullptr;
  }
  if (wide) return false;
  if (op == "lop3" || op == "bfi" || op == "prmt" || (op == "shf" && has_flag(from, "wrap"))) {
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.operand(from.operands.at(1), 4);
    to.b = decoder.operand(from.operands.at(2), 4);
    to.c = decoder.operand(from.operands.at(3), 4);
    if (op == "lop3") to.run = logic3, to.immediate = static_cast<s64>(from.operands.at(4).bits);
    else if (op == "bfi") to.run = insert_field, to.more = decoder.list({decoder.operand(from.operands.at(4), 4)});
    else if (op == "prmt") to.run = from.flags.size() == 1 ? ternary<u32, u32, u32, u32, Permute> : nullptr;
    else to.run = has_flag(from, "l") ? ternary<u32, u32, u32, u32, FunnelLeft> : ternary<u32, u32, u32, u32, FunnelRight>;
    return to.run != nullptr;
  }
  return false;
}

bool decode_move(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  const Text &d = from.operands.at(0), &a = from.operands.at(1);
  const uint32_t bytes = bytes_of_type(type);
  if (a.kind == Text::Kind::list || d.kind == Text::Kind::list) {
    const bool packs = a.kind == Text::Kind::list;
    const std::vector<Text>& parts = packs ? a.parts : d.parts;
    to.count = static_cast<uint8_t>(parts.size());
    to.bytes = static_cast<uint8_t>(bytes / parts.size());
    if (to.bytes != 2 && to.bytes != 4) return false;
    std::vector<Operand> places;
    for (const Text& part : parts) places.push_back(packs ? decoder.operand(part, 4) : decoder.destination(part));
    to.more = decoder.list(places);
    if (packs) to.d = decoder.destination(d);
    else to.a = decoder.operand(a, bytes);
    to.run = packs ? pack_parts : unpack_parts;
    return true;
  }
  to.d = decoder.destination(d);
  to.a = decoder.typed(a, type);
  to.run = bytes == 8 ? unary<u64, u64, Copy> : unary<u32, u32, Copy>;
  return only(from, {});
}

bool decode_comparison(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  static const std::map<std::string, const Handlers*> names = {
      {"eq", &comparison<eq>},   {"ne", &comparison<ne>},   {"lt", &comparison<lt>},   {"le", &comparison<le>},
      {"gt", &comparison<gt>},   {"ge", &comparison<ge>},   {"lo", &comparison<lt>},   {"ls", &comparison<le>},
      {"hi", &comparison<gt>},   {"hs", &comparison<ge>},   {"equ", &comparison<equ>}, {"neu", &comparison<neu>},
      {"ltu", &comparison<ltu>}, {"leu", &comparison<leu>}, {"gtu", &comparison<gtu>}, {"geu", &comparison<geu>},
      {"num", &comparison<num>}, {"nan", &comparison<nan>}};
  const std::string& type = from.flags.back();
  const auto found = names.find(from.flags.at(0));
  if (found == names.end()) return false;
  to.run = found->second->of(type);
  if (!to.run) return false;
  for (size_t k = 1; k + 1 < from.flags.size(); ++k) {
    if (from.flags[k] == "and") to.count = 1;
    else if (from.flags[k] == "or") to.count = 2;
    else if (from.flags[k] == "xor") to.count = 3;
    else return false;
  }
  const Text& d = from.operands.at(0);
  to.d = decoder.destination(d.kind == Text::Kind::pair ? d.parts[0] : d);
  if (d.kind == Text::Kind::pair) {
    to.flags |= 2;
    to.more = decoder.list({decoder.destination(d.parts[1])});
  }
  to.a = decoder.typed(from.operands.at(1), type);
  to.b = decoder.typed(from.operands.at(2), type);
  if (to.count) to.c = decoder.typed(from.operands.at(3), "pred");
  return from.operands.size() == (to.count ? 4u : 3u);
}

}  // namespace

bool decode_arithmetic(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  if (from.flags.empty()) return false;
  const std::string& type = from.flags.back();
  if (op == "mov") return decode_move(decoder, from, to);
  if (op == "setp") return decode_comparison(decoder, from, to);
  if (op == "selp") {
    to.d = decoder.destination(from.operands.at(0));
    to.a = decoder.typed(from.operands.at(1), type);
    to.b = decoder.typed(from.operands.at(2), type);
    to.c = decoder.typed(from.operands.at(3), "pred");
    to.run = bytes_of_type(type) == 8 ? select<u64> : select<u32>;
    return only(from, {});
  }
  if (type == "f32" || type == "f64") return decode_float(decoder, from, to);
  return decode_integer(decoder, from, to) || decode_bits(decoder, from, to);
}

}  // namespace softgpu

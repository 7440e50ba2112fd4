// Moves, comparisons, selections and bits.
#include "tests/softgpu/operations.h"

namespace softgpu {
namespace {

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
template <class T>
void insert_field(Warp& w, const Instruction& i, u32 mask) {
  constexpr u32 bits = 8 * sizeof(T);
  const T *a = w.read<T>(i.a), *b = w.read<T>(i.b);
  const u32 *c = w.read<u32>(i.c), *e = w.read<u32>(w.run->program->operands[i.more]);
  store_lanes(w.write<T>(i.d), mask, [&](int l) {
    const u32 position = c[l] & 255, length = e[l] & 255;
    if (position >= bits) return b[l];
    const T field = static_cast<T>((length >= bits ? T{0} : T{1} << length) - 1) << position;
    return static_cast<T>((b[l] & ~field) | (a[l] << position & field));
  });
}

// selp on bits: c is a predicate's word.
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
      return unordered || (op == equ   ? a == b
                           : op == neu ? a != b
                           : op == ltu ? a < b
                           : op == leu ? a <= b
                           : op == gtu ? a > b
                                       : a >= b);
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
    if (i.bytes * i.count == 8)
      w.write<u64>(i.d)[l] = value;
    else
      w.write<u32>(i.d)[l] = static_cast<u32>(value);
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

template <Comparison op>
constexpr Handlers comparison = {set_predicate<u16, op>,   set_predicate<s16, op>,   set_predicate<u32, op>,
                                 set_predicate<s32, op>,   set_predicate<u64, op>,   set_predicate<s64, op>,
                                 set_predicate<float, op>, set_predicate<double, op>};

bool decode_count(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  if (from.flags.size() != 1 || (type != "b32" && type != "b64")) return false;
  const bool wide = type == "b64";
  if (from.opcode == "popc")
    to.run = wide ? unary<u32, u64, Popcount> : unary<u32, u32, Popcount>;
  else if (from.opcode == "clz")
    to.run = wide ? unary<u32, u64, LeadingZeros> : unary<u32, u32, LeadingZeros>;
  else
    to.run = wide ? unary<u64, u64, ReverseBits> : unary<u32, u32, ReverseBits>;
  operands(decoder, from, to, type, 1);
  return true;
}

// bfe, bfi, lop3, prmt, shf: three operands, of which those after the first have 32 bits (not bfi's second), and
// perhaps one more.
bool decode_field(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  const std::string& type = from.flags.back();
  size_t count = 4;
  if (op == "bfe" && from.flags.size() == 1) {
    to.run = type == "u32"   ? ternary<u32, u32, u32, u32, ExtractField<u32>>
             : type == "s32" ? ternary<s32, s32, u32, u32, ExtractField<s32>>
             : type == "u64" ? ternary<u64, u64, u32, u32, ExtractField<u64>>
             : type == "s64" ? ternary<s64, s64, u32, u32, ExtractField<s64>>
                             : nullptr;
  } else if (op == "bfi" && from.flags.size() == 1) {
    count = 5;
    to.run = type == "b32" ? insert_field<u32> : type == "b64" ? insert_field<u64> : nullptr;
    to.more = decoder.list({decoder.operand(from.operands.at(4), 4)});
  } else if (type != "b32") {
    return false;
  } else if (op == "prmt" && from.flags.size() == 1) {
    to.run = ternary<u32, u32, u32, u32, Permute>;
  } else if (op == "shf" && from.flags.size() == 3) {
    const bool left = from.flags[0] == "l", wrap = from.flags[1] == "wrap";
    if ((!left && from.flags[0] != "r") || (!wrap && from.flags[1] != "clamp")) return false;
    if (left)
      to.run = wrap ? ternary<u32, u32, u32, u32, FunnelLeft<31>> : ternary<u32, u32, u32, u32, FunnelLeft<32>>;
    else
      to.run = wrap ? ternary<u32, u32, u32, u32, FunnelRight<31>> : ternary<u32, u32, u32, u32, FunnelRight<32>>;
  } else if (op == "lop3" && from.flags.size() == 1) {
    count = 5;
    to.run = logic3;
    if (from.operands.at(4).kind != Text::Kind::integer) return false;
    to.immediate = static_cast<s64>(from.operands[4].bits);
  }
  if (!to.run || from.operands.size() != count) return false;
  to.d = decoder.destination(from.operands[0]);
  to.a = decoder.typed(from.operands[1], type);
  to.b = op == "bfi" ? decoder.typed(from.operands[2], type) : decoder.operand(from.operands[2], 4);
  to.c = decoder.operand(from.operands[3], 4);
  return true;
}

bool decode_highest_bit(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  const bool amount = has_flag(from, "shiftamt");
  if (from.flags.size() != (amount ? 2u : 1u) || (type != "u32" && type != "s32")) return false;
  if (type == "u32")
    to.run = amount ? unary<u32, u32, FindBit<true>> : unary<u32, u32, FindBit<false>>;
  else
    to.run = amount ? unary<u32, s32, FindBit<true>> : unary<u32, s32, FindBit<false>>;
  operands(decoder, from, to, type, 1);
  return true;
}

bool decode_selection(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  if (from.flags.size() != 1 || from.operands.size() != 4 || type == "pred" || bytes_of_type(type) == 1) return false;
  to.d = decoder.destination(from.operands[0]);
  to.a = decoder.typed(from.operands[1], type);
  to.b = decoder.typed(from.operands[2], type);
  to.c = decoder.typed(from.operands[3], "pred");
  to.run = bytes_of_type(type) == 8 ? select<u64> : select<u32>;
  return true;
}

bool decode_move(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& type = from.flags.back();
  const Text &d = from.operands.at(0), &a = from.operands.at(1);
  const uint32_t bytes = bytes_of_type(type);
  if (from.flags.size() != 1 || from.operands.size() != 2 || bytes == 1 || bytes > 8) return false;
  if (a.kind == Text::Kind::list || d.kind == Text::Kind::list) {
    const bool packs = a.kind == Text::Kind::list;
    const std::vector<Text>& parts = packs ? a.parts : d.parts;
    to.count = static_cast<uint8_t>(parts.size());
    to.bytes = static_cast<uint8_t>(bytes / parts.size());
    if (to.bytes != 2 && to.bytes != 4) return false;
    std::vector<Operand> places;
    for (const Text& part : parts) places.push_back(packs ? decoder.operand(part, 4) : decoder.destination(part));
    to.more = decoder.list(places);
    if (packs)
      to.d = decoder.destination(d);
    else
      to.a = decoder.operand(a, bytes);
    to.run = packs ? pack_parts : unpack_parts;
    return true;
  }
  to.d = decoder.destination(d);
  to.a = decoder.typed(a, type);
  to.run = bytes == 8 ? unary<u64, u64, Copy> : unary<u32, u32, Copy>;
  return true;
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
  static const std::string for_floats = " equ neu ltu leu gtu geu num nan ", for_unsigned = " lo ls hi hs ";
  const std::string name = " " + from.flags[0] + " ";
  if (for_floats.find(name) != std::string::npos && type[0] != 'f') return false;
  if (for_unsigned.find(name) != std::string::npos && type[0] != 'u') return false;
  if (!to.run) return false;
  for (size_t k = 1; k + 1 < from.flags.size(); ++k) {
    if (from.flags[k] == "and")
      to.count = 1;
    else if (from.flags[k] == "or")
      to.count = 2;
    else if (from.flags[k] == "xor")
      to.count = 3;
    else
      return false;
  }
  const Text& d = from.operands.at(0);
  to.d = decoder.destination(d.kind == Text::Kind::pair ? d.parts[0] : d);
  if (d.kind == Text::Kind::pair) {
    to.flags |= 2;
    to.more = decoder.list({decoder.destination(d.parts[1])});
  }
  to.a = decoder.typed(from.operands.at(1), type);
  to.b = decoder.typed(from.operands.at(2), type);
  if (to.count) {
    Text other = from.operands.at(3);
    to.flags |= other.negated ? 1 : 0;
    other.negated = false;
    to.c = decoder.typed(other, "pred");
  }
  return from.operands.size() == (to.count ? 4u : 3u);
}

}  // namespace

bool decode_bits(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& op = from.opcode;
  if (from.flags.empty()) return false;
  if (op == "mov") return decode_move(decoder, from, to);
  if (op == "setp") return decode_comparison(decoder, from, to);
  if (op == "selp") return decode_selection(decoder, from, to);
  if (op == "popc" || op == "clz" || op == "brev") return decode_count(decoder, from, to);
  if (op == "bfind") return decode_highest_bit(decoder, from, to);
  if (op == "bfe" || op == "bfi" || op == "lop3" || op == "prmt" || op == "shf") return decode_field(decoder, from, to);
  return false;
}

}  // namespace softgpu

// Branches, barriers, and what a warp's lanes do together.
#include <bit>

#include "tests/softgpu/decode.h"
#include "tests/softgpu/warp.h"

namespace softgpu {
namespace {

enum Shuffle : uint8_t { shuffle_up, shuffle_down, shuffle_xor, shuffle_index };

// shfl.sync.MODE.b32 d|p, a, b, c, members. PTX ISA: c holds the clamp in bits 0-4 and the segment mask in 8-12.
template <Shuffle mode>
void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t result[lanes], valid[lanes];
  const uint32_t* a = warp.read<uint32_t>(i.a);
  const uint32_t* b = warp.read<uint32_t>(i.b);
  const uint32_t* c = warp.read<uint32_t>(i.c);
  const uint32_t members = warp.read<uint32_t>(i.member_mask)[std::countr_zero(mask)];
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const int value = static_cast<int>(b[lane] & 31), clamp = static_cast<int>(c[lane] & 31);
    const int segment = static_cast<int>(c[lane] >> 8 & 31);
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = mode == shuffle_up     ? lane - value
               : mode == shuffle_down ? lane + value
               : mode == shuffle_xor  ? lane ^ value
                                      : first | (value & ~segment);
    const bool inside = mode == shuffle_up ? from >= last : from <= last;
    if (!inside) from = lane;
    if (!(members >> from & 1) || !(warp.live >> from & 1))
      report_at(FindingKind::barrier, warp, i, lane,
                "reads lane " + std::to_string(from) + ", which does not take part in the shuffle");
    result[lane] = a[from];
    valid[lane] = inside ? ~0u : 0u;
  }
  store_lanes(warp.write<uint32_t>(i.d), mask, [&](int lane) { return result[lane]; });
  if (i.count)
    store_lanes(warp.write<uint32_t>(warp.run->program->operands[i.more]), mask, [&](int lane) { return valid[lane]; });
}

enum Vote : uint8_t { vote_all, vote_any, vote_uni, vote_ballot };
template <Vote mode>
void vote(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t members = warp.read<uint32_t>(i.member_mask)[std::countr_zero(mask)];
  uint32_t yes = to_mask(warp.read<uint32_t>(i.a));
  if (i.flags) yes = ~yes;  // a negated predicate
  yes &= mask & members;
  const bool all = yes == (mask & members);
  const uint32_t result = mode == vote_ballot ? yes
                          : mode == vote_all  ? (all ? ~0u : 0u)
                          : mode == vote_any  ? (yes ? ~0u : 0u)
                                              : (all || !yes ? ~0u : 0u);
  store_lanes(warp.write<uint32_t>(i.d), mask, [&](int) { return result; });
}

void active_mask(Warp& warp, const Instruction& i, uint32_t mask) {
  store_lanes(warp.write<uint32_t>(i.d), mask, [&](int) { return mask; });
}

enum Reduction : uint8_t {
  redux_add,
  redux_min_s,
  redux_min_u,
  redux_max_s,
  redux_max_u,
  redux_and,
  redux_or,
  redux_xor
};
template <Reduction mode>
void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t* a = warp.read<uint32_t>(i.a);
  uint32_t x = a[std::countr_zero(mask)];
  for (uint32_t rest = mask & (mask - 1); rest; rest &= rest - 1) {
    const uint32_t y = a[std::countr_zero(rest)];
    const auto sx = static_cast<int32_t>(x), sy = static_cast<int32_t>(y);
    switch (mode) {
      case redux_add:
        x += y;
        break;
      case redux_min_s:
        x = static_cast<uint32_t>(std::min(sx, sy));
        break;
      case redux_max_s:
        x = static_cast<uint32_t>(std::max(sx, sy));
        break;
      case redux_min_u:
        x = std::min(x, y);
        break;
      case redux_max_u:
        x = std::max(x, y);
        break;
      case redux_and:
        x &= y;
        break;
      case redux_or:
        x |= y;
        break;
      case redux_xor:
        x ^= y;
        break;
    }
  }
  store_lanes(warp.write<uint32_t>(i.d), mask, [&](int) { return x; });
}

void synchronise_warp(Warp& warp, const Instruction& i, uint32_t mask) {
  // Only the whole warp's __syncwarp counts as an order; what is ordered within a part of it is not followed.
  if (mask != warp.live) return;
  if (warp.epoch >= last_epoch)
    give_up(warp, i, std::countr_zero(mask), "more than 16,380 __syncwarp and barriers in a block");
  ++warp.epoch;
}
void nothing(Warp&, const Instruction&, uint32_t) {}
void trap(Warp& warp, const Instruction& i, uint32_t mask) {
  report_at(FindingKind::invalid_call, warp, i, std::countr_zero(mask), "trap");
  throw LaunchFailed{};
}

void member_mask(Decoder& decoder, const Text& text, Instruction& to) {
  to.control = Control::warp_sync;
  to.has_member_mask = true;
  to.member_mask = decoder.operand(text, 4);
  to.kind = InstructionClass::sync;
}

bool decode_shuffle(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.flags.size() != 3 || from.flags[0] != "sync" || from.flags[2] != "b32") return false;
  member_mask(decoder, from.operands.at(4), to);
  const Text& result = from.operands[0];
  to.d = decoder.destination(result.kind == Text::Kind::pair ? result.parts[0] : result);
  if (result.kind == Text::Kind::pair) {
    to.count = 1;
    to.more = decoder.list({decoder.destination(result.parts[1])});
  }
  to.a = decoder.operand(from.operands[1], 4);
  to.b = decoder.operand(from.operands[2], 4);
  to.c = decoder.operand(from.operands[3], 4);
  const std::string& mode = from.flags[1];
  to.run = mode == "up"     ? shuffle<shuffle_up>
           : mode == "down" ? shuffle<shuffle_down>
           : mode == "bfly" ? shuffle<shuffle_xor>
           : mode == "idx"  ? shuffle<shuffle_index>
                            : nullptr;
  return to.run != nullptr;
}

bool decode_vote(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.flags.size() != 3 || from.flags[0] != "sync") return false;
  member_mask(decoder, from.operands.at(2), to);
  to.d = decoder.destination(from.operands[0]);
  Text voted = from.operands[1];
  to.flags = voted.negated ? 1 : 0;
  voted.negated = false;
  to.a = decoder.typed(voted, "pred");
  const std::string& mode = from.flags[1];
  if (from.flags[2] != (mode == "ballot" ? "b32" : "pred")) return false;
  to.run = mode == "all"      ? vote<vote_all>
           : mode == "any"    ? vote<vote_any>
           : mode == "uni"    ? vote<vote_uni>
           : mode == "ballot" ? vote<vote_ballot>
                              : nullptr;
  return to.run != nullptr;
}

bool decode_reduction(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.flags.size() != 3 || from.flags[0] != "sync") return false;
  member_mask(decoder, from.operands.at(2), to);
  to.d = decoder.destination(from.operands[0]);
  to.a = decoder.operand(from.operands[1], 4);
  const std::string& mode = from.flags[1];
  const std::string& type = from.flags[2];
  const bool is_signed = type == "s32", is_logic = mode == "and" || mode == "or" || mode == "xor";
  if (is_logic ? type != "b32" : type != "u32" && type != "s32") return false;
  to.run = mode == "add"   ? reduce<redux_add>
           : mode == "min" ? (is_signed ? reduce<redux_min_s> : reduce<redux_min_u>)
           : mode == "max" ? (is_signed ? reduce<redux_max_s> : reduce<redux_max_u>)
           : mode == "and" ? reduce<redux_and>
           : mode == "or"  ? reduce<redux_or>
           : mode == "xor" ? reduce<redux_xor>
                           : nullptr;
  return to.run != nullptr;
}

bool decode_barrier(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  to.kind = InstructionClass::sync;
  if (from.opcode == "bar" && from.flags == std::vector<std::string>{"warp", "sync"}) {
    member_mask(decoder, from.operands.at(0), to);
    to.run = synchronise_warp;
    return true;
  }
  for (const std::string& flag : from.flags)
    if (flag != "sync" && flag != "cta" && flag != "aligned") return false;
  if (!has_flag(from, "sync")) return false;
  if (from.operands.size() > 1) decoder.fail(from, "barriers of a part of the block are not known");
  if (from.operands.at(0).kind != Text::Kind::integer) decoder.fail(from, "a barrier whose number is not constant");
  to.control = Control::barrier;
  to.immediate = static_cast<int64_t>(from.operands[0].bits);
  return true;
}

}  // namespace

bool decode_warp(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::string& opcode = from.opcode;
  if (opcode == "bra") {
    if (from.operands.size() != 1 || (from.flags.size() == 1 ? from.flags[0] != "uni" : !from.flags.empty()))
      return false;
    to.control = Control::branch;
    to.kind = InstructionClass::control;
    to.immediate = decoder.label(from.operands.at(0));
    return true;
  }
  if (opcode == "exit" || opcode == "ret") {
    to.control = Control::exit;
    to.kind = InstructionClass::control;
    return true;
  }
  if (opcode == "bar" || opcode == "barrier") return decode_barrier(decoder, from, to);
  if (opcode == "shfl") return decode_shuffle(decoder, from, to);
  if (opcode == "vote") return decode_vote(decoder, from, to);
  if (opcode == "redux") return decode_reduction(decoder, from, to);
  if (opcode == "activemask" && from.flags == std::vector<std::string>{"b32"}) {
    to.d = decoder.destination(from.operands.at(0));
    to.run = active_mask;
    return true;
  }
  // Accesses are in order here, and a fence orders no two threads: that needs a barrier or a launch.
  if (opcode == "membar" || opcode == "fence" || opcode == "nanosleep" || opcode == "prefetch") {
    for (const std::string& flag : from.flags)  // fences of other proxies would order what is not known here
      if (flag.starts_with("proxy") || flag.starts_with("mbarrier") || flag == "cluster") return false;
    to.run = nothing;
    return true;
  }
  if (opcode == "trap") {
    to.run = trap;
    return true;
  }
  return false;
}

}  // namespace softgpu

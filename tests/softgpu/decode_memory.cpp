// ld, st, cvta, atom, red, cp.async.
#include <algorithm>
#include <bit>
#include <mutex>
#include <set>

#include "tests/softgpu/accesses.h"
#include "tests/softgpu/decode.h"

namespace softgpu {
namespace {

enum Space : uint8_t { generic, global, shared, local, parameter };

// Instruction::flags of ld and st; 0x80 is "a 32-bit address" (gather_addresses).
constexpr uint8_t sign_extended = 1, wide_register = 2;

// Instruction::count: elements of the vector; d: unused for st; more: their operands.
void load_elements(Warp& warp, const Instruction& i, uint32_t mask, std::byte* const (&at)[lanes]) {
  for (int k = 0; k < i.count; ++k) {
    const Operand& place = warp.run->program->operands[i.more + static_cast<uint32_t>(k)];
    uint32_t* narrow = warp.write<uint32_t>(place);
    uint64_t* wide = warp.write<uint64_t>(place);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      uint64_t value = 0;
      std::memcpy(&value, at[lane] + k * i.bytes, i.bytes);
      if (i.flags & sign_extended) {
        const int shift = 64 - 8 * i.bytes;
        value = static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
      }
      if (i.flags & wide_register)
        wide[lane] = value;
      else
        narrow[lane] = static_cast<uint32_t>(value);
    }
  }
}
void store_elements(Warp& warp, const Instruction& i, uint32_t mask, std::byte* const (&at)[lanes]) {
  for (int k = 0; k < i.count; ++k) {
    const Operand& place = warp.run->program->operands[i.more + static_cast<uint32_t>(k)];
    const auto* from = warp.read<std::byte>(place);
    const size_t stride = i.flags & wide_register ? 8 : 4;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      std::memcpy(at[lane] + k * i.bytes, from + static_cast<size_t>(lane) * stride, i.bytes);
    }
  }
}

Space space_of(uint64_t address) {
  if (address >= parameter_window && address < parameter_window + generic_window_bytes) return parameter;
  if (address >= generic_shared && address < generic_shared + generic_window_bytes) return shared;
  if (address >= generic_local && address < generic_local + generic_window_bytes) return local;
  return global;
}

// Lanes of a generic access that go to one space; the addresses become those of the space.
Addresses part_of(const Addresses& all, Space space) {
  Addresses part = all;
  part.mask = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(all.mask >> lane & 1) || space_of(all.of[lane]) != space) continue;
    part.mask |= 1u << lane;
    if (space == shared) part.of[lane] -= generic_shared;
    if (space == local) part.of[lane] -= generic_local;
  }
  return part;
}

void access_space(Warp& warp, const Instruction& i, Space space, const Addresses& a, Access access,
                  std::byte* (&at)[lanes]) {
  if (a.mask == 0) return;
  if (space == global)
    access_global(warp, i, a, access, at);
  else if (space == shared)
    access_shared(warp, i, a, access, at);
  else if (space == local)
    access_local(warp, i, a, at);
  else {
    for (int lane = 0; lane < lanes; ++lane) {
      if (!(a.mask >> lane & 1)) continue;
      const uint64_t offset = a.of[lane] - parameter_window;
      const auto& parameters = warp.run->launch->parameters;
      if (offset + a.bytes > parameters.size()) {
        report_at(FindingKind::out_of_bounds, warp, i, lane, "a parameter at byte " + std::to_string(offset));
        throw LaunchFailed{};
      }
      at[lane] = const_cast<std::byte*>(parameters.data()) + offset;
    }
  }
}

void locate(Warp& warp, const Instruction& i, uint32_t mask, Space space, Access access, std::byte* (&at)[lanes]) {
  Addresses all;
  gather_addresses(warp, i, i.a, mask, static_cast<uint32_t>(i.bytes) * i.count, all);
  if (space != generic) return access_space(warp, i, space, all, access, at);
  for (const Space s : {global, shared, local, parameter}) access_space(warp, i, s, part_of(all, s), access, at);
}

template <Space space>
void load(Warp& warp, const Instruction& i, uint32_t mask) {
  std::byte* at[lanes];
  locate(warp, i, mask, space, Access::read, at);
  load_elements(warp, i, mask, at);
}
template <Space space>
void store(Warp& warp, const Instruction& i, uint32_t mask) {
  std::byte* at[lanes];
  locate(warp, i, mask, space, Access::write, at);
  store_elements(warp, i, mask, at);
}

Space space_named(const ParsedInstruction& from) {
  for (const std::string& flag : from.flags) {
    if (flag == "global" || flag == "const") return global;
    if (flag == "shared" || flag == "shared::cta") return shared;
    if (flag == "local") return local;
    if (flag == "param") return parameter;
  }
  return generic;
}

InstructionClass class_of(Space space) {
  if (space == global || space == generic) return InstructionClass::global;
  return space == shared ? InstructionClass::shared : InstructionClass::other;
}

void decode_access(Decoder& decoder, const ParsedInstruction& from, Instruction& to, bool loads) {
  static const char* const known[] = {"global",
                                      "const",
                                      "shared",
                                      "shared::cta",
                                      "local",
                                      "param",
                                      "nc",
                                      "v2",
                                      "v4",
                                      "relaxed",
                                      "weak",
                                      "gpu",
                                      "cta",
                                      "sys",
                                      "volatile",
                                      "ca",
                                      "cg",
                                      "cs",
                                      "lu",
                                      "cv",
                                      "wb",
                                      "wt",
                                      "L1::no_allocate",
                                      "L1::evict_last",
                                      "L1::evict_first",
                                      "L2::128B",
                                      "L2::256B",
                                      "L2::64B",
                                      "acquire",
                                      "release"};
  for (size_t k = 0; k + 1 < from.flags.size(); ++k)
    if (std::find(std::begin(known), std::end(known), from.flags[k]) == std::end(known))
      decoder.fail(from, "a modifier that is not known");
  const std::string& type = from.flags.back();
  if (type == "pred" || bytes_of_type(type) > 8) decoder.fail(from, "a type that is not known");
  if (from.operands.size() != 2) decoder.fail(from, "another number of operands");
  const Space space = space_named(from);
  const Text& values = from.operands.at(loads ? 0 : 1);
  to.bytes = static_cast<uint8_t>(bytes_of_type(type));
  to.count = has_flag(from, "v4") ? 4 : has_flag(from, "v2") ? 2 : 1;
  to.kind = class_of(space);
  to.a = decoder.address(from.operands.at(loads ? 1 : 0), "", to);
  std::vector<Operand> places;
  const std::vector<Text> parts = values.kind == Text::Kind::list ? values.parts : std::vector<Text>{values};
  if (parts.size() != to.count) decoder.fail(from, "a vector of another length");
  for (const Text& part : parts) {
    const bool wide =
        part.kind == Text::Kind::reg ? part.name != "_" && decoder.register_bytes(part) == 8 : to.bytes == 8;
    if (wide) to.flags |= wide_register;
    places.push_back(loads ? decoder.destination(part) : decoder.operand(part, wide ? 8 : 4));
  }
  if (loads && type[0] == 's') to.flags |= sign_extended;
  to.more = decoder.list(places);
  constexpr Handler loaders[] = {load<generic>, load<global>, load<shared>, load<local>, load<parameter>};
  constexpr Handler storers[] = {store<generic>, store<global>, store<shared>, store<local>, store<parameter>};
  to.run = loads ? loaders[space] : storers[space];
}

// cvta: d = a + immediate, and cvta.to: the other way, checked.
void add_offset(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint64_t* a = warp.read<uint64_t>(i.a);
  store_lanes(warp.write<uint64_t>(i.d), mask, [&](int lane) { return a[lane] + static_cast<uint64_t>(i.immediate); });
}

bool decode_cvta(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const Space space = space_named(from);
  to.d = decoder.destination(from.operands.at(0));
  to.a = decoder.operand(from.operands.at(1), 8);
  to.immediate = static_cast<int64_t>(space == shared ? generic_shared : space == local ? generic_local : 0);
  if (has_flag(from, "to")) to.immediate = -to.immediate;
  if (from.flags.back() != "u64") return false;
  to.run = add_offset;
  return true;
}

enum AtomOperation : uint8_t {
  atom_add,
  atom_min_s,
  atom_min_u,
  atom_max_s,
  atom_max_u,
  atom_and,
  atom_or,
  atom_xor,
  atom_exch,
  atom_cas,
  atom_inc,
  atom_dec
};

template <class T>
T combine(AtomOperation operation, T old, T b, T c) {
  using S = std::make_signed_t<T>;
  switch (operation) {
    case atom_add:
      return old + b;
    case atom_min_s:
      return static_cast<T>(std::min(static_cast<S>(old), static_cast<S>(b)));
    case atom_max_s:
      return static_cast<T>(std::max(static_cast<S>(old), static_cast<S>(b)));
    case atom_min_u:
      return std::min(old, b);
    case atom_max_u:
      return std::max(old, b);
    case atom_and:
      return old & b;
    case atom_or:
      return old | b;
    case atom_xor:
      return old ^ b;
    case atom_exch:
      return b;
    case atom_cas:
      return old == b ? c : old;
    case atom_inc:
      return old >= b ? 0 : old + 1;
    case atom_dec:
      return old == 0 || old > b ? b : old - 1;
  }
  return old;
}

// immediate: offset; count: 1; flags' low bits of `more`'s first operand hold nothing: the operation stands in
// operands[more].offset, whether there is a result in operands[more + 1].offset.
template <class T, Space space>
void atomic(Warp& warp, const Instruction& i, uint32_t mask) {
  static std::mutex mutex;
  std::byte* at[lanes];
  locate(warp, i, mask, space, Access::atomic, at);
  const auto operation = static_cast<AtomOperation>(warp.run->program->operands[i.more].offset);
  const bool result = warp.run->program->operands[i.more + 1].offset != 0;
  const T* b = warp.read<T>(i.b);
  const T* c = warp.read<T>(i.c);
  const std::lock_guard lock(mutex);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    T old;
    std::memcpy(&old, at[lane], sizeof old);
    const T fresh = combine<T>(operation, old, b[lane], c[lane]);
    std::memcpy(at[lane], &fresh, sizeof fresh);
    if (result) warp.write<T>(i.d)[lane] = old;
  }
}

bool decode_atomic(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const bool result = from.opcode == "atom";
  const std::string& type = from.flags.back();
  if (type[0] == 'f' || type.find("16") != std::string::npos)
    decoder.fail(from, "atomic operations on floats are not deterministic, and not supported");
  static const std::set<std::string> scopes = {"relaxed", "acquire", "release", "acq_rel", "cta",
                                               "gpu",     "sys",     "global",  "shared",  "shared::cta"};
  const std::map<std::string, AtomOperation> names = {{"add", atom_add},
                                                      {"min", type[0] == 's' ? atom_min_s : atom_min_u},
                                                      {"max", type[0] == 's' ? atom_max_s : atom_max_u},
                                                      {"and", atom_and},
                                                      {"or", atom_or},
                                                      {"xor", atom_xor},
                                                      {"exch", atom_exch},
                                                      {"cas", atom_cas},
                                                      {"inc", atom_inc},
                                                      {"dec", atom_dec}};
  const AtomOperation* operation = nullptr;
  for (const std::string& flag : from.flags)
    if (const auto found = names.find(flag); found != names.end()) operation = &found->second;
  for (size_t k = 0; k + 1 < from.flags.size(); ++k)
    if (scopes.count(from.flags[k]) == 0 && names.count(from.flags[k]) == 0) return false;
  if (!operation || bytes_of_type(type) < 4 || bytes_of_type(type) > 8) return false;
  if (from.operands.size() != (result ? 1u : 0u) + (*operation == atom_cas ? 3 : 2)) return false;
  const Space space = space_named(from);
  const size_t first = result ? 1 : 0;
  to.kind = class_of(space);
  to.bytes = static_cast<uint8_t>(bytes_of_type(type));
  to.count = 1;
  to.a = decoder.address(from.operands.at(first), "", to);
  to.b = decoder.typed(from.operands.at(first + 1), type);
  to.c = *operation == atom_cas ? decoder.typed(from.operands.at(first + 2), type) : to.b;
  if (result) to.d = decoder.destination(from.operands[0]);
  to.more = decoder.list({{*operation, false}, {result ? 1u : 0u, false}});
  const bool wide = to.bytes == 8;
  if (space == shared)
    to.run = wide ? atomic<uint64_t, shared> : atomic<uint32_t, shared>;
  else if (space == global)
    to.run = wide ? atomic<uint64_t, global> : atomic<uint32_t, global>;
  else
    to.run = wide ? atomic<uint64_t, generic> : atomic<uint32_t, generic>;
  return true;
}

// cp.async.{ca,cg}.shared.global [a], [b], bytes{, source bytes}: the offset of [b] stands in operands[more].offset.
void async_copy(Warp& warp, const Instruction& i, uint32_t mask) {
  Addresses to, from;
  gather_addresses(warp, i, i.a, mask, i.bytes, to);
  Instruction source = i;
  const auto& [offset, narrow] = warp.run->program->operands[i.more];
  source.immediate = static_cast<int32_t>(offset);
  source.flags = narrow ? 0x80 : 0;
  gather_addresses(warp, source, i.b, mask, i.bytes, from);
  start_copy(warp, i, from, to, i.count ? warp.read<uint32_t>(i.c) : nullptr);
}
void async_commit(Warp& warp, const Instruction&, uint32_t) { commit_copies(warp); }
void async_wait(Warp& warp, const Instruction& i, uint32_t) { wait_copies(warp, i, static_cast<size_t>(i.immediate)); }
void async_wait_all(Warp& warp, const Instruction& i, uint32_t) {
  commit_copies(warp);
  wait_copies(warp, i, 0);
}

bool decode_async_copy(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.flags.empty() || from.flags[0] != "async" || has_flag(from, "bulk")) return false;
  to.kind = InstructionClass::sync;
  // Groups are kept for a whole warp: its lanes have to commit and wait together.
  if (has_flag(from, "commit_group") || has_flag(from, "wait_group") || has_flag(from, "wait_all")) {
    to.control = Control::warp_sync;
    to.run = has_flag(from, "commit_group") ? async_commit : has_flag(from, "wait_all") ? async_wait_all : async_wait;
    if (has_flag(from, "wait_group")) to.immediate = static_cast<int64_t>(from.operands.at(0).bits);
    return true;
  }
  static const std::set<std::string> known = {"async",  "ca",      "cg",       "shared",  "shared::cta",
                                              "global", "L2::64B", "L2::128B", "L2::256B"};
  for (const std::string& flag : from.flags)
    if (known.count(flag) == 0) return false;
  if (!has_flag(from, "ca") && !has_flag(from, "cg")) return false;
  to.kind = InstructionClass::global;
  Instruction source;
  to.b = decoder.address(from.operands.at(1), "global", source);
  to.more = decoder.list({{static_cast<uint32_t>(source.immediate), (source.flags & 0x80) != 0}});
  to.a = decoder.address(from.operands.at(0), "shared", to);
  to.bytes = static_cast<uint8_t>(from.operands.at(2).bits);
  if (has_flag(from, "cg") ? to.bytes != 16 : to.bytes != 4 && to.bytes != 8 && to.bytes != 16)
    decoder.fail(from, "a size that cp.async does not allow");
  to.count = from.operands.size() > 3;
  if (from.operands.size() > 4 || (to.count && decoder.is_predicate(from.operands[3])))
    decoder.fail(from, "an operand that is not known");
  if (to.count) to.c = decoder.operand(from.operands[3], 4);
  to.run = async_copy;
  return true;
}

}  // namespace

bool decode_memory(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.opcode == "ld" || from.opcode == "st") {
    decode_access(decoder, from, to, from.opcode == "ld");
    return true;
  }
  if (from.opcode == "cvta") return decode_cvta(decoder, from, to);
  if (from.opcode == "atom" || from.opcode == "red") return decode_atomic(decoder, from, to);
  if (from.opcode == "cp") return decode_async_copy(decoder, from, to);
  return false;
}

}  // namespace softgpu

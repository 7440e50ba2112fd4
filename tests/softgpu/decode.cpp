#include "tests/softgpu/decode.h"

#include <cxxabi.h>

#include <algorithm>
#include <bitset>
#include <cstring>
#include <set>

namespace softgpu {
namespace {

bool is_special(const std::string& name) {
  static const std::set<std::string> names = {
      "%tid.x",   "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",      "%ntid.z",      "%ctaid.x",
      "%ctaid.y", "%ctaid.z",     "%nctaid.x",    "%nctaid.y",    "%nctaid.z",    "%laneid",      "%warpid",
      "%nwarpid", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%lanemask_eq", "%dynamic_smem_size"};
  return names.count(name) != 0;
}

void each_register(const Text& text, const auto& f) {
  if (text.kind == Text::Kind::reg || (text.kind == Text::Kind::address && text.base_is_reg)) f(text.name);
  for (const Text& part : text.parts) each_register(part, f);
}

// Instructions without a result: all their operands are read.
bool has_no_result(const ParsedInstruction& i) {
  static const std::set<std::string> names = {"st",       "bra",      "exit",  "ret",    "bar",       "barrier",
                                              "membar",   "fence",    "red",   "trap",   "nanosleep", "cp",
                                              "prefetch", "stmatrix", "brkpt", "discard"};
  return names.count(i.opcode) != 0;
}

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string readable = status == 0 ? text : name;
  std::free(text);
  // "void a::(anonymous namespace)::f<int>(int)": without the result and the arguments.
  for (size_t at; (at = readable.find("(anonymous namespace)::")) != std::string::npos;) readable.erase(at, 23);
  for (size_t at; (at = readable.find("_GLOBAL__N__")) != std::string::npos;) {
    const size_t end = readable.find("::", at);
    readable.erase(at, end == std::string::npos ? std::string::npos : end + 2 - at);
  }
  int depth = 0;
  size_t end = readable.size();
  for (size_t i = 0; i < readable.size(); ++i) {
    depth += (readable[i] == '<') - (readable[i] == '>');
    if (readable[i] == '(' && depth == 0 && i > 0) {
      end = i;
      break;
    }
  }
  readable.resize(end);
  if (readable.rfind("void ", 0) == 0) readable.erase(0, 5);
  return readable;
}

using Bits = std::vector<uint64_t>;
void set(Bits& bits, size_t i) { bits[i / 64] |= uint64_t{1} << i % 64; }
void clear(Bits& bits, size_t i) { bits[i / 64] &= ~(uint64_t{1} << i % 64); }

}  // namespace

Decoder::Decoder(const ParsedKernel& kernel, const Module& module, Program& program)
    : kernel_(kernel), module_(module), program_(program) {}

void Decoder::fail(const ParsedInstruction& at, const std::string& what) const {
  std::string opcode = at.opcode;
  for (const std::string& flag : at.flags) opcode += "." + flag;
  throw std::runtime_error("softgpu: " + what + ": " + opcode + " (PTX line " + std::to_string(at.line) + ", kernel " +
                           program_.readable + ")");
}

// The declaration of %r5: its own, or that of all the %r.
bool Decoder::is_declared(const std::string& name) const {
  return kernel_.registers.count(name) ||
         kernel_.registers.count(name.substr(0, name.find_last_not_of("0123456789") + 1));
}

const std::string& Decoder::type_of(const std::string& name) const {
  if (const auto found = kernel_.registers.find(name); found != kernel_.registers.end()) return found->second;
  return kernel_.registers.at(name.substr(0, name.find_last_not_of("0123456789") + 1));
}

bool Decoder::is_predicate(const Text& text) const {
  return text.kind == Text::Kind::reg && !is_special(text.name) && type_of(text.name) == ".pred";
}

uint32_t Decoder::register_bytes(const Text& text) const {
  if (is_special(text.name)) return 4;
  return bytes_of_type(type_of(text.name).substr(1)) == 8 ? 8 : 4;
}

// Registers of PTX are as many as there are values; here those whose lives do not overlap share a place. A register's
// life: from the first to the last instruction, in the order of the text, at which it is alive on some path.
void Decoder::place_registers() {
  const auto& code = kernel_.instructions;
  const size_t n = code.size();
  std::map<std::string, size_t> numbers;
  std::vector<std::string> names;
  std::vector<std::vector<size_t>> reads(n), writes(n);
  const auto number = [&](const std::string& name) {
    const auto [at, fresh] = numbers.emplace(name, names.size());
    if (fresh) names.push_back(name);
    return at->second;
  };
  for (size_t i = 0; i < n; ++i) {
    const bool result = !has_no_result(code[i]);
    if (!code[i].predicate.empty()) reads[i].push_back(number(code[i].predicate));
    for (size_t o = 0; o < code[i].operands.size(); ++o)
      each_register(code[i].operands[o], [&](const std::string& name) {
        if (is_special(name)) return;
        if (!is_declared(name)) fail(code[i], "register " + name + " is not known");
        const bool written = result && o == 0 && code[i].operands[o].kind != Text::Kind::address;
        (written ? writes : reads)[i].push_back(number(name));
        if (written && !code[i].predicate.empty()) reads[i].push_back(number(name));  // lanes that keep their value
      });
  }
  // Liveness, backwards until nothing changes.
  const size_t words = names.size() / 64 + 1;
  std::vector<Bits> alive(n + 1, Bits(words));
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = n; i-- > 0;) {
      Bits out(words);
      const bool leaves =
          (code[i].opcode == "bra" || code[i].opcode == "exit" || code[i].opcode == "ret") && code[i].predicate.empty();
      if (!leaves) out = alive[i + 1];
      if (code[i].opcode == "bra") {
        const Bits& target = alive[kernel_.labels.at(code[i].operands.at(0).name)];
        for (size_t w = 0; w < words; ++w) out[w] |= target[w];
      }
      for (size_t r : writes[i]) clear(out, r);
      for (size_t r : reads[i]) set(out, r);
      if (out != alive[i]) alive[i] = std::move(out), changed = true;
    }
  }
  std::vector<size_t> first(names.size(), n), last(names.size(), 0);
  for (size_t i = 0; i < n; ++i) {
    const auto touch = [&](size_t r) {
      first[r] = std::min(first[r], i);
      last[r] = std::max(last[r], i);
    };
    for (size_t r : writes[i]) touch(r);
    for (size_t r : reads[i]) touch(r);
    for (size_t w = 0; w < words; ++w)
      for (uint64_t bits = alive[i][w]; bits; bits &= bits - 1)
        touch(w * 64 + static_cast<size_t>(__builtin_ctzll(bits)));
  }
  // A place is free again after the last instruction; a result never shares a place with an operand of its own
  // instruction, because handlers may write one before they have read all.
  std::vector<size_t> order(names.size());
  for (size_t r = 0; r < order.size(); ++r) order[r] = r;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return first[a] < first[b]; });
  std::multimap<size_t, size_t> active;  // end, register
  std::vector<uint32_t> free_places[2];
  uint32_t used = program_.register_bytes;
  for (size_t r : order) {
    while (!active.empty() && active.begin()->first < first[r]) {
      const size_t gone = active.begin()->second;
      free_places[bytes_of_type(type_of(names[gone]).substr(1)) == 8].push_back(registers_[names[gone]]);
      active.erase(active.begin());
    }
    const bool wide = bytes_of_type(type_of(names[r]).substr(1)) == 8;
    if (free_places[wide].empty()) {
      registers_[names[r]] = used;
      used += wide ? 2 * lane_bytes : lane_bytes;
    } else {
      registers_[names[r]] = free_places[wide].back();
      free_places[wide].pop_back();
    }
    active.emplace(last[r], r);
  }
  program_.register_bytes = used;
}

void Decoder::place_variables() {
  uint32_t offset = 0;
  for (const auto& p : kernel_.parameters) {
    offset = (offset + p.alignment - 1) / p.alignment * p.alignment;
    program_.kernel.parameters.push_back({offset, p.bytes});
    symbols_[p.name] = parameter_window + offset;
    offset += p.bytes;
  }
  program_.kernel.parameter_bytes = offset;
  // The shared variables that this kernel names; those of the module may belong to other kernels.
  std::set<std::string> named;
  const auto note = [&](const auto& self, const Text& t) -> void {
    if (t.kind == Text::Kind::name || (t.kind == Text::Kind::address && !t.base_is_reg)) named.insert(t.name);
    for (const Text& part : t.parts) self(self, part);
  };
  for (const auto& i : kernel_.instructions)
    for (const Text& o : i.operands) note(note, o);
  uint64_t shared = 0, local = 0;
  std::vector<const ParsedVariable*> dynamic;
  const auto place = [&](const ParsedVariable& v) {
    if (v.space == "shared" && v.external) dynamic.push_back(&v);
    if (v.space != "shared" && v.space != "local") return;
    if (v.external) return;
    uint64_t& end = v.space == "shared" ? shared : local;
    end = (end + v.alignment - 1) / v.alignment * v.alignment;
    symbols_[v.name] = (v.space == "shared" ? shared_window : local_window) + end;
    end += v.bytes;
  };
  for (const auto& v : module_.parsed.variables)
    if (named.count(v.name)) place(v);
  for (const auto& v : kernel_.variables) place(v);
  program_.shared_bytes = static_cast<uint32_t>(shared);
  program_.local_bytes = static_cast<uint32_t>(local);
  uint32_t alignment = 16;
  for (const ParsedVariable* v : dynamic) alignment = std::max(alignment, v->alignment);
  program_.dynamic_shared_offset = static_cast<uint32_t>((shared + alignment - 1) / alignment * alignment);
  for (const ParsedVariable* v : dynamic) symbols_[v->name] = shared_window + program_.dynamic_shared_offset;
}

uint64_t Decoder::symbol(const std::string& name, const std::string&) const {
  if (const auto found = symbols_.find(name); found != symbols_.end()) return found->second;
  for (const auto& v : module_.variables)
    if (v.name == name) return v.address;
  throw std::runtime_error("softgpu: symbol " + name + " is not known in " + program_.readable);
}

uint32_t Decoder::label(const Text& text) const {
  const auto found = kernel_.labels.find(text.name);
  if (found == kernel_.labels.end()) throw std::runtime_error("softgpu: label " + text.name + " is not known");
  return found->second;
}

Operand Decoder::constant(uint64_t value, uint32_t bytes) {
  const auto [at, fresh] = constants_.emplace(std::make_pair(value, bytes), constant_bytes_);
  if (fresh) {
    constant_values_.emplace_back(value, bytes);
    constant_bytes_ += bytes == 8 ? 2 * lane_bytes : lane_bytes;
  }
  return {at->second, true};
}

Operand Decoder::special(const std::string& name) {
  for (const Special& s : program_.specials)
    if (s.name == name) return s.place;
  program_.specials.push_back({name, {program_.register_bytes, false}});
  program_.register_bytes += lane_bytes;
  return program_.specials.back().place;
}

Operand Decoder::operand(const Text& text, uint32_t bytes) {
  if (text.negated) throw std::runtime_error("softgpu: a negated operand");  // setp and vote take the ! away
  switch (text.kind) {
    case Text::Kind::reg:
      if (is_special(text.name)) return special(text.name);
      if (registers_.count(text.name) == 0) throw std::runtime_error("softgpu: register " + text.name + "?");
      return {registers_.at(text.name), false};
    case Text::Kind::integer:
    case Text::Kind::real64:
      return constant(bytes == 8 ? text.bits : static_cast<uint32_t>(text.bits), bytes);
    case Text::Kind::real32:
      if (bytes == 8) throw std::runtime_error("softgpu: an f32 constant where 64 bits are read");
      return constant(text.bits, 4);
    case Text::Kind::name:
      if (text.name == "WARP_SZ") return constant(lanes, bytes);
      return constant(symbol(text.name, ""), bytes);
    default:
      throw std::runtime_error("softgpu: an operand of this form is not known in " + program_.readable);
  }
}

Operand Decoder::typed(const Text& text, const std::string& type) {
  const uint32_t bytes = bytes_of_type(type) == 8 ? 8 : 4;
  if (type == "pred" && text.kind == Text::Kind::integer) return constant(text.bits ? 0xffffffffu : 0, 4);
  return operand(text, bytes);
}

Operand Decoder::destination(const Text& text) {
  if (text.name != "_" && (text.kind != Text::Kind::reg || is_special(text.name)))
    throw std::runtime_error("softgpu: a result that is no register");
  if (text.name == "_") {  // nobody reads it
    static const std::string sink = "_";
    if (!registers_.count(sink)) {
      registers_[sink] = program_.register_bytes;
      program_.register_bytes += 2 * lane_bytes;
    }
    return {registers_.at(sink), false};
  }
  return {registers_.at(text.name), false};
}

uint32_t Decoder::list(const std::vector<Operand>& operands) {
  const auto first = static_cast<uint32_t>(program_.operands.size());
  program_.operands.insert(program_.operands.end(), operands.begin(), operands.end());
  return first;
}

Operand Decoder::address(const Text& text, const std::string& space, Instruction& to) {
  if (text.kind != Text::Kind::address) throw std::runtime_error("softgpu: not an address");
  to.immediate = static_cast<int64_t>(text.bits);
  if (text.base_is_reg) {
    Text base;
    base.name = text.name;
    const uint32_t bytes = register_bytes(base);
    to.flags |= bytes == 4 ? 0x80 : 0;  // a 32-bit address
    return operand(base, bytes);
  }
  return constant(text.name.empty() ? 0 : symbol(text.name, space), 8);
}

// The innermost loop (instructions between a label and a branch back to it) with most mma.
void Decoder::find_mma_loop() {
  uint32_t most = 0;
  for (uint32_t i = 0; i < program_.instructions.size(); ++i) {
    const Instruction& branch = program_.instructions[i];
    if (branch.control != Control::branch || branch.immediate > i) continue;
    const auto begin = static_cast<uint32_t>(branch.immediate);
    uint32_t mma = 0;
    bool inner_has_mma = false;
    for (uint32_t j = begin; j <= i; ++j) {
      mma += program_.instructions[j].kind == InstructionClass::mma;
      const Instruction& inner = program_.instructions[j];
      if (j < i && inner.control == Control::branch && inner.immediate <= j && inner.immediate >= begin)
        for (auto k = static_cast<uint32_t>(inner.immediate); k <= j; ++k)
          inner_has_mma |= program_.instructions[k].kind == InstructionClass::mma;
    }
    if (mma > most && !inner_has_mma) {
      most = mma;
      program_.mma_loop = {begin, i};
    }
  }
}

void Decoder::run() {
  program_.kernel.name = kernel_.name;
  program_.readable = demangled(kernel_.name);
  program_.files = &module_.parsed.files;
  place_variables();
  place_registers();
  for (const ParsedInstruction& from : kernel_.instructions) {
    Instruction to;
    to.index = static_cast<uint32_t>(program_.instructions.size());
    to.source = static_cast<int32_t>(to.index);
    program_.sources.push_back(from.source);
    program_.ptx_lines.push_back(from.line);
    std::string opcode = from.opcode;
    for (const std::string& flag : from.flags) opcode += "." + flag;
    program_.opcodes.push_back(opcode);
    if (!from.predicate.empty()) {
      Text predicate;
      predicate.name = from.predicate;
      to.predicated = true;
      to.negated = from.negated;
      to.predicate = operand(predicate, 4);
    }
    bool known = false;
    try {
      known = decode_warp(*this, from, to) || decode_memory(*this, from, to) || decode_matrix(*this, from, to) ||
              decode_conversion(*this, from, to) || decode_bits(*this, from, to) || decode_arithmetic(*this, from, to);
    } catch (const std::exception& error) {
      fail(from, error.what());
    }
    if (!known) fail(from, "an instruction that is not known");
    program_.instructions.push_back(to);
  }
  Instruction end;
  end.control = Control::exit;
  end.kind = InstructionClass::control;
  end.index = static_cast<uint32_t>(program_.instructions.size());
  end.source = end.index == 0 ? 0 : static_cast<int32_t>(end.index) - 1;
  if (program_.sources.empty()) program_.sources.emplace_back();
  program_.opcodes.push_back("end");
  program_.instructions.push_back(end);
  find_mma_loop();
  program_.constants_memory.resize(constant_bytes_ + 64);
  program_.constants =
      program_.constants_memory.data() + (64 - reinterpret_cast<uintptr_t>(program_.constants_memory.data()) % 64) % 64;
  for (const auto& [value, offset] : constants_)
    for (int lane = 0; lane < lanes; ++lane)
      std::memcpy(program_.constants + offset + static_cast<size_t>(lane) * value.second, &value.first, value.second);
  program_.kernel.shared_bytes = program_.shared_bytes;
  if (kernel_.max_threads) program_.kernel.max_threads = kernel_.max_threads;
  program_.kernel.registers = program_.register_bytes / lane_bytes;
}

std::unique_ptr<Program> decode(const ParsedKernel& kernel, const Module& module) {
  auto program = std::make_unique<Program>();
  Decoder(kernel, module, *program).run();
  return program;
}

}  // namespace softgpu

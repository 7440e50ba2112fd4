// What the decoders of the instruction families share.
#pragma once

#include <stdexcept>

#include "tests/softgpu/program.h"

namespace softgpu {

class Decoder {
 public:
  Decoder(const ParsedKernel& kernel, const Module& module, Program& program);
  void run();

  [[noreturn]] void fail(const ParsedInstruction& at, const std::string& what) const;

  // The place of a register, or of a constant with these 32 equal values of `bytes` (4 or 8).
  Operand operand(const Text& text, uint32_t bytes);
  // The same for an operand of this instruction's type, e.g. "f32", "pred".
  Operand typed(const Text& text, const std::string& type);
  Operand destination(const Text& text);
  // Appends to the operands of the program; the index of the first.
  uint32_t list(const std::vector<Operand>& operands);
  // An address operand: its base register (or a constant 0 or symbol address) and the offset in to.immediate.
  Operand address(const Text& text, const std::string& space, Instruction& to);
  bool is_predicate(const Text& text) const;
  uint32_t register_bytes(const Text& text) const;  // 4 or 8
  uint64_t symbol(const std::string& name, const std::string& space_hint) const;
  uint32_t label(const Text& text) const;
  const ParsedKernel& kernel() const { return kernel_; }
  Program& program() { return program_; }

 private:
  bool is_declared(const std::string& name) const;
  const std::string& type_of(const std::string& name) const;
  void place_registers();
  void place_variables();
  void find_mma_loop();
  Operand constant(uint64_t value, uint32_t bytes);
  Operand special(const std::string& name);

  const ParsedKernel& kernel_;
  const Module& module_;
  Program& program_;
  std::map<std::string, uint32_t> registers_;  // offset of each
  std::map<std::pair<uint64_t, uint32_t>, uint32_t> constants_;
  std::vector<std::pair<uint64_t, uint32_t>> constant_values_;  // value, bytes
  uint32_t constant_bytes_ = 0;
  std::map<std::string, uint64_t> symbols_;  // address of parameters, shared and local variables
};

inline bool has_flag(const ParsedInstruction& i, const char* flag) {
  for (const std::string& f : i.flags)
    if (f == flag) return true;
  return false;
}

}  // namespace softgpu

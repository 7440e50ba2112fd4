// PTX text as a structure: kernels with their instructions, variables, source lines. No meaning yet; see decode.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace softgpu {

struct SourceLine {
  int file = 0, line = 0;                // where the code stands
  int caller_file = 0, caller_line = 0;  // where it was inlined to; 0: it was not
};

struct Text {
  // What an operand is: %r1 | 42 | 0f3F800000 | name or label | [base + offset] | {a, b, …} | a|b
  enum class Kind : uint8_t { reg, integer, real32, real64, name, address, list, pair };
  Kind kind = Kind::reg;
  std::string name;          // reg, name; address: its base, reg or name ("" : none)
  uint64_t bits = 0;         // integer (two's complement), real32, real64; address: the offset
  bool base_is_reg = false;  // of an address
  bool negated = false;      // !%p
  std::vector<Text> parts;   // list, pair
};

struct ParsedInstruction {
  std::string opcode;              // "ld", and …
  std::vector<std::string> flags;  // … "global", "v4", "f32"
  std::string predicate;           // "%p1", or ""
  bool negated = false;
  std::vector<Text> operands;
  SourceLine source;
  int line = 0;  // of the PTX text
};

struct ParsedVariable {
  std::string space;  // global, const, shared, local
  std::string name;
  uint32_t alignment = 1;
  uint64_t bytes = 0;  // 0 with external: dynamic shared memory
  bool external = false;
  std::vector<uint8_t> initial;  // of global and const; empty: zero
};

struct ParsedKernel {
  std::string name;
  struct Parameter {
    std::string name;
    uint32_t bytes = 0, alignment = 1;
  };
  std::vector<Parameter> parameters;
  uint32_t max_threads = 0;
  std::map<std::string, std::string> registers;  // "%r": ".b32", of the declarations %r<15>
  std::vector<ParsedVariable> variables;         // shared and local ones of its body
  std::vector<ParsedInstruction> instructions;
  std::map<std::string, uint32_t> labels;  // index of the instruction that follows
};

struct ParsedModule {
  std::map<int, std::string> files;
  std::vector<ParsedVariable> variables;
  std::vector<ParsedKernel> kernels;
};

// Throws std::runtime_error with line and text.
ParsedModule parse_ptx(const std::string& ptx);

uint32_t bytes_of_type(const std::string& type);  // "f32" → 4; throws for what it does not know

}  // namespace softgpu

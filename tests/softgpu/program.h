// A kernel decoded for the interpreter: registers have places, instructions have functions.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/softgpu/engine.h"
#include "tests/softgpu/ptx_parser.h"

namespace softgpu {

constexpr int lanes = 32;
constexpr uint32_t lane_bytes = 4 * lanes;  // a 32-bit register of a warp; a 64-bit one takes two such slots

// Where an operand's 32 values stand: in the warp's registers, or among the kernel's constants.
struct Operand {
  uint32_t offset = 0;  // bytes
  bool constant = false;
};

enum class InstructionClass : uint8_t { mma, ldmatrix, shared, global, control, sync, special, other };

enum class Control : uint8_t { none, branch, exit, barrier, warp_sync };

struct Warp;
struct Instruction;
// Does the instruction for the lanes of `mask`.
using Handler = void (*)(Warp& warp, const Instruction& instruction, uint32_t mask);

struct Instruction {
  Handler run = nullptr;
  Control control = Control::none;
  InstructionClass kind = InstructionClass::other;
  bool predicated = false, negated = false;
  // Which lanes have to arrive together: member_mask is an operand, or all live lanes.
  bool has_member_mask = false;
  Operand predicate, member_mask;
  Operand d, a, b, c;     // of most
  uint32_t more = 0;      // index of further operands in Program::operands
  uint8_t count = 0;      // of them, or elements of a vector
  uint8_t bytes = 0;      // of an element in memory
  uint8_t flags = 0;      // meaning depends on the handler
  int64_t immediate = 0;  // offset of an address, target of a branch, number of a barrier
  int32_t source = 0;     // index of Program::sources
  uint32_t index = 0;     // its own
};

struct SharedVariable {
  std::string name;
  uint32_t offset, bytes;
};

// An initial value of registers: a special register or a constant.
struct Special {
  std::string name;
  Operand place;
};

struct Loop {
  uint32_t begin, end;  // instructions [begin, end]
};

struct Program {
  Kernel kernel;
  std::string readable;  // demangled, without arguments
  std::vector<Instruction> instructions;
  std::vector<Operand> operands;
  std::vector<SourceLine> sources;
  std::vector<int> ptx_lines;
  std::vector<std::string> opcodes;  // for messages and the profile
  const std::map<int, std::string>* files = nullptr;
  uint32_t register_bytes = 0;  // of a warp
  std::vector<std::byte> constants_memory;
  std::byte* constants = nullptr;  // 64-byte aligned inside it
  std::vector<Special> specials;
  std::vector<uint64_t> parameter_registers;
  uint32_t shared_bytes = 0;  // static
  uint32_t dynamic_shared_offset = 0;
  uint32_t local_bytes = 0;  // of a thread
  Loop mma_loop = {1, 0};    // the innermost loop with most mma; empty: none
};

struct Module {
  ParsedModule parsed;
  std::vector<std::unique_ptr<Program>> programs;
  struct Variable {
    std::string name;
    uint64_t address;
    size_t bytes;
  };
  std::vector<Variable> variables;
};

// Throws std::runtime_error for what it does not know.
std::unique_ptr<Program> decode(const ParsedKernel& kernel, const Module& module);

// By decode, for each theme; true: it knew the opcode and filled in the instruction.
class Decoder;
bool decode_bits(Decoder& decoder, const ParsedInstruction& from, Instruction& to);
bool decode_arithmetic(Decoder& decoder, const ParsedInstruction& from, Instruction& to);
bool decode_conversion(Decoder& decoder, const ParsedInstruction& from, Instruction& to);
bool decode_memory(Decoder& decoder, const ParsedInstruction& from, Instruction& to);
bool decode_matrix(Decoder& decoder, const ParsedInstruction& from, Instruction& to);
bool decode_warp(Decoder& decoder, const ParsedInstruction& from, Instruction& to);

// Windows of the generic address space. Shared and local memory begin at an address that is not zero, so that an
// address that was never converted is caught.
constexpr uint64_t shared_window = 0x1000;                 // the .shared address of the first byte
constexpr uint64_t local_window = 0x1000;                  // the .local address of the first byte
constexpr uint64_t parameter_window = 0x0000300000000000;  // address of a parameter
constexpr uint64_t generic_shared = 0x0000100000000000;    // what cvta adds
constexpr uint64_t generic_local = 0x0000200000000000;
constexpr uint64_t generic_window_bytes = uint64_t{1} << 32;

}  // namespace softgpu

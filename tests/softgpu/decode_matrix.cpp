// ldmatrix and mma.sync, by the fragment layouts of the PTX ISA (Warp Level Matrix Instructions).
#include <bit>
#include <set>

#include "tests/softgpu/accesses.h"
#include "tests/softgpu/decode.h"

namespace softgpu {
namespace {

void need_all_lanes(const Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask == 0xffffffffu) [[likely]]
    return;
  report_at(FindingKind::barrier, warp, i, std::countr_zero(mask), "needs all 32 lanes, has " + fmt_mask(mask));
  throw LaunchFailed{};
}

// count: matrices of 8 × 8 elements of 2 bytes; flags bit 0: transposed. Lane 8·m + r holds the address of row r of
// matrix m; lane t gets of each matrix elements (t / 4, 2·(t % 4)) and the next in the row, or, transposed,
// (2·(t % 4), t / 4) and the next in the column.
void load_matrices(Warp& warp, const Instruction& i, uint32_t mask) {
  need_all_lanes(warp, i, mask);
  const uint32_t used = i.count == 4 ? 0xffffffffu : (1u << 8 * i.count) - 1;
  Addresses rows;
  gather_addresses(warp, i, i.a, mask & used, 16, rows);
  std::byte* at[lanes];
  access_shared(warp, i, rows, Access::read, at);
  uint16_t matrix[4][8][8];
  for (int m = 0; m < i.count; ++m)
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[m][r], at[8 * m + r], 16);
  for (int m = 0; m < i.count; ++m) {
    uint32_t* d = warp.write<uint32_t>(warp.run->program->operands[i.more + static_cast<uint32_t>(m)]);
    for (int lane = 0; lane < lanes; ++lane) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint16_t low = i.flags & 1 ? matrix[m][c][r] : matrix[m][r][c];
      const uint16_t high = i.flags & 1 ? matrix[m][c + 1][r] : matrix[m][r][c + 1];
      d[lane] = low | uint32_t{high} << 16;
    }
  }
}

float low_bf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float high_bf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

// d = a·b + c for a [16, 16] and b [16, 8] of bf16, c and d [16, 8] of f32. With g = lane / 4 and t = lane % 4:
//   a0 (g, 2t…)  a1 (g + 8, 2t…)  a2 (g, 2t + 8…)  a3 (g + 8, 2t + 8…)     b0 (2t…, g)  b1 (2t + 8…, g)
//   c0, c1 (g, 2t…)  c2, c3 (g + 8, 2t…)
// Operands of the program from `more` on: 4 of d, 4 of a, 2 of b, 4 of c.
void multiply(Warp& warp, const Instruction& i, uint32_t mask) {
  need_all_lanes(warp, i, mask);
  const Operand* o = warp.run->program->operands.data() + i.more;
  alignas(64) float a[16][16], b[16][8], c[16][8];
  for (int k = 0; k < 4; ++k) {
    const uint32_t* pairs = warp.read<uint32_t>(o[4 + k]);
    for (int lane = 0; lane < lanes; ++lane) {
      float* to = &a[lane / 4 + 8 * (k & 1)][2 * (lane % 4) + 8 * (k >> 1)];
      to[0] = low_bf16(pairs[lane]);
      to[1] = high_bf16(pairs[lane]);
    }
  }
  for (int k = 0; k < 2; ++k) {
    const uint32_t* pairs = warp.read<uint32_t>(o[8 + k]);
    for (int lane = 0; lane < lanes; ++lane) {
      const int row = 2 * (lane % 4) + 8 * k, column = lane / 4;
      b[row][column] = low_bf16(pairs[lane]);
      b[row + 1][column] = high_bf16(pairs[lane]);
    }
  }
  for (int k = 0; k < 4; ++k) {
    const float* values = warp.read<float>(o[10 + k]);
    for (int lane = 0; lane < lanes; ++lane) c[lane / 4 + 8 * (k >> 1)][2 * (lane % 4) + (k & 1)] = values[lane];
  }
  for (int row = 0; row < 16; ++row) {
    float sum[8];
    for (int n = 0; n < 8; ++n) sum[n] = c[row][n];
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
    for (int n = 0; n < 8; ++n) c[row][n] = sum[n];
  }
  for (int k = 0; k < 4; ++k) {
    float* values = warp.write<float>(o[k]);
    for (int lane = 0; lane < lanes; ++lane) values[lane] = c[lane / 4 + 8 * (k >> 1)][2 * (lane % 4) + (k & 1)];
  }
}

std::vector<Text> parts_of(const Text& text) {
  return text.kind == Text::Kind::list ? text.parts : std::vector<Text>{text};
}

bool decode_ldmatrix(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (!has_flag(from, "m8n8") || from.flags.back() != "b16" ||
      !(has_flag(from, "shared") || has_flag(from, "shared::cta")))
    return false;
  static const std::set<std::string> known = {"sync", "aligned", "m8n8",   "x1",          "x2",
                                              "x4",   "trans",   "shared", "shared::cta", "b16"};
  for (const std::string& flag : from.flags)
    if (known.count(flag) == 0) return false;
  to.control = Control::warp_sync;
  to.kind = InstructionClass::ldmatrix;
  to.count = has_flag(from, "x4") ? 4 : has_flag(from, "x2") ? 2 : 1;
  to.a = decoder.address(from.operands.at(1), "shared", to);
  to.flags |= has_flag(from, "trans") ? 1 : 0;
  std::vector<Operand> places;
  for (const Text& part : parts_of(from.operands[0])) places.push_back(decoder.destination(part));
  if (places.size() != to.count) decoder.fail(from, "a vector of another length");
  to.more = decoder.list(places);
  to.run = load_matrices;
  return true;
}

bool decode_mma(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  const std::vector<std::string> known = {"sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"};
  if (from.flags != known) return false;
  to.control = Control::warp_sync;
  to.kind = InstructionClass::mma;
  std::vector<Operand> places;
  for (size_t o = 0; o < 4; ++o)
    for (const Text& part : parts_of(from.operands.at(o)))
      places.push_back(o == 0 ? decoder.destination(part) : decoder.operand(part, 4));
  if (places.size() != 14) decoder.fail(from, "fragments of another size");
  to.more = decoder.list(places);
  to.run = multiply;
  return true;
}

}  // namespace

bool decode_matrix(Decoder& decoder, const ParsedInstruction& from, Instruction& to) {
  if (from.opcode == "ldmatrix") return decode_ldmatrix(decoder, from, to);
  if (from.opcode == "mma") return decode_mma(decoder, from, to);
  return false;
}

}  // namespace softgpu

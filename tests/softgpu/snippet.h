// Runs a few instructions of PTX on the engine: a kernel of one block of 32 threads, each with three values of its own.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "tests/softgpu/engine.h"
#include "tests/softgpu/streams.h"

namespace softgpu {

struct Bits {  // what stands in a register
  uint64_t bits;
  Bits(float x) : bits(std::bit_cast<uint32_t>(x)) {}
  Bits(double x) : bits(std::bit_cast<uint64_t>(x)) {}
  template <std::integral T>
  Bits(T x) : bits(static_cast<uint64_t>(x)) {}
};

using Lanes = std::array<uint64_t, 32>;

// The kernel has its three values in %rd1-3, their lower parts in %r1-3, %f1-3, %fd1-3, %rs1-3, and leaves its result
// in register 9 of the kind: r d f F s (16 bits) p. %r0: its lane; %rd8: the address of its element of `out`; `shared`:
// 4096 bytes.
inline std::string kernel_text(const std::string& snippet, char kind) {
  const std::string end = kind == 'r'   ? "cvt.u64.u32 %rd9, %r9;"
                          : kind == 'f' ? "mov.b32 %r9, %f9; cvt.u64.u32 %rd9, %r9;"
                          : kind == 'F' ? "mov.b64 %rd9, %fd9;"
                          : kind == 's' ? "cvt.u64.u16 %rd9, %rs9;"
                          : kind == 'p' ? "selp.b64 %rd9, 1, 0, %p9;"
                                        : "";
  std::string loads;
  for (const std::string n : {"1", "2", "3"})
    loads += "ld.global.u64 %rd" + n + ", [%rd7+" + std::to_string(256 * (n[0] - '1')) + "]; cvt.u32.u64 %r" + n +
             ", %rd" + n + "; mov.b32 %f" + n + ", %r" + n + "; mov.b64 %fd" + n + ", %rd" + n + "; cvt.u16.u32 %rs" +
             n + ", %r" + n + ";\n";
  return ".version 9.0\n.target sm_80\n.address_size 64\n"
         ".visible .entry test(.param .u64 in, .param .u64 out) {\n"
         ".reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .f32 %f<20>; .reg .f64 "
         "%fd<20>;\n"
         ".shared .align 16 .b8 shared[4096];\n"
         "mov.u32 %r0, %tid.x;\nld.param.u64 %rd7, [in]; ld.param.u64 %rd8, [out];\n"
         "cvta.to.global.u64 %rd7, %rd7; cvta.to.global.u64 %rd8, %rd8;\n"
         "mul.wide.u32 %rd6, %r0, 8; add.s64 %rd7, %rd7, %rd6; add.s64 %rd8, %rd8, %rd6;\n" +
         loads + snippet + "\n" + end + "\nst.global.u64 [%rd8], %rd9;\nret;\n}\n";
}

// `threads` of the block's; values beyond them stay ~0. Results as 64 bits.
inline Lanes run_text(const std::string& text, const Lanes& a, const Lanes& b, const Lanes& c, uint32_t threads = 32) {
  const auto module = load_module(text);
  const uint64_t in = allocate(3 * sizeof(Lanes), "in"), out = allocate(sizeof(Lanes), "out");
  const Lanes* inputs[] = {&a, &b, &c};
  for (size_t k = 0; k < 3; ++k) std::memcpy(host_view(in) + k * sizeof(Lanes), inputs[k], sizeof(Lanes));
  std::memset(host_view(out), 0xff, sizeof(Lanes));
  mark_written(in, 3 * sizeof(Lanes));
  Launch launch{module.get(), find_kernel(*module, "test"), {1, 1, 1}, {threads, 1, 1}, 0, {}, 0};
  for (const uint64_t address : {in, out})
    for (int byte = 0; byte < 8; ++byte) launch.parameters.push_back(static_cast<std::byte>(address >> 8 * byte));
  enqueue(nullptr, "kernel test", [&](WorkId work) {
    launch.work = work;
    run(launch);
  });
  synchronize(nullptr);
  Lanes result;
  std::memcpy(result.data(), host_view(out), sizeof(Lanes));
  release(in);
  release(out);
  return result;
}
inline Lanes run_snippet(const std::string& snippet, char kind, const Lanes& a = {}, const Lanes& b = {},
                         const Lanes& c = {}, uint32_t threads = 32) {
  return run_text(kernel_text(snippet, kind), a, b, c, threads);
}

struct Row {  // of a table: operands and result
  Bits a, b, c, expected;
};

// One lane for each row; the others repeat the first.
inline void check(const std::string& snippet, char kind, const std::vector<Row>& rows) {
  SCOPED_TRACE(snippet);
  ASSERT_LE(rows.size(), 32u);
  Lanes a, b, c;
  for (size_t lane = 0; lane < 32; ++lane) {
    const Row& row = rows[lane < rows.size() ? lane : 0];
    a[lane] = row.a.bits, b[lane] = row.b.bits, c[lane] = row.c.bits;
  }
  const Lanes result = run_snippet(snippet, kind, a, b, c);
  const uint64_t mask = kind == 'd' || kind == 'F' ? ~uint64_t{0} : kind == 's' ? 0xffff : 0xffffffff;
  for (size_t k = 0; k < rows.size(); ++k) {
    const uint64_t expected = rows[k].expected.bits & mask;
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(expected)),
               y = std::bit_cast<float>(static_cast<uint32_t>(result[k]));
    if (kind == 'f' && x != x)
      EXPECT_NE(y, y) << "row " << k;
    else
      EXPECT_EQ(result[k], expected) << "row " << k << std::hex << ": 0x" << result[k] << ", not 0x" << expected;
  }
  EXPECT_EQ(softgpu_finding_count(), 0);
}

// The findings so far, which are then forgotten.
inline std::string take_findings() {
  std::string all;
  for (int i = 0; i < softgpu_finding_count(); ++i) all += softgpu_finding(i);
  softgpu_clear_findings();
  return all;
}

// Refused while decoding, with the PTX's line and the instruction in the message.
inline void refuses(const std::string& instruction) {
  SCOPED_TRACE(instruction);
  try {
    load_module(kernel_text(instruction, 'd'));
    ADD_FAILURE() << "is accepted";
  } catch (const std::exception& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("PTX line 14"), std::string::npos) << message;
    const std::string opcode = instruction.substr(0, instruction.find_first_of(" ;"));
    EXPECT_TRUE(message.find(opcode) != std::string::npos || message.find(" near ") != std::string::npos) << message;
  }
}

}  // namespace softgpu

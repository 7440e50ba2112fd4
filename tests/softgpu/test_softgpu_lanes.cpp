// Every instruction that touches memory, other lanes or the order of what is run, with results computed by hand.
#include "tests/softgpu/snippet.h"

namespace softgpu {
namespace {

// Memory.

TEST(Instructions, LoadsAndStores) {
  const auto there_and_back = [](const std::string& store, const std::string& load, char kind, Bits a, Bits expected) {
    check("mov.u32 %r20, shared; shl.b32 %r21, %r0, 4; add.u32 %r20, %r20, %r21;\n" + store + "\n" + load, kind,
          {{a, 0x1122334455667788, 0, expected}});
  };
  there_and_back("st.shared.u32 [%r20+4], %r1;", "ld.shared.u32 %r9, [%r20+4];", 'r', 7, 7);
  there_and_back("st.shared.u8 [%r20+4], %r1; st.shared.u8 [%r20+5], %r2;", "ld.shared.s8 %r9, [%r20+4];", 'r', 0x180,
                 -128);
  there_and_back("st.shared.u8 [%r20+4], %r1; st.shared.u8 [%r20+5], %r2;", "ld.shared.u8 %r9, [%r20+4];", 'r', 0x180,
                 128);
  there_and_back("st.shared.u16 [%r20+4], %rs1;", "ld.shared.s16 %r9, [%r20+4];", 'r', 0x8000, -32768);
  there_and_back("st.shared.b16 [%r20+4], %rs1;", "ld.shared.u16 %rs9, [%r20+4];", 's', 0x8000, 0x8000);
  there_and_back("st.shared.u32 [%r20+4], %r1;", "ld.shared.s32 %rd9, [%r20+4];", 'd', -5, -5);
  there_and_back("st.shared.u32 [%r20+4], %r1;", "ld.shared.u32 %rd9, [%r20+4];", 'd', -5, 0xfffffffb);
  there_and_back("st.shared.v2.u32 [%r20+8], {%r1, %r2};", "ld.shared.u64 %rd9, [%r20+8];", 'd', 5, 0x5566778800000005);
  there_and_back("st.shared.v4.f32 [%r20], {%f1, %f2, %f1, 0f3F800000};",
                 "ld.shared.v4.u32 {%r4, %r5, %r6, %r9}, [%r20];", 'r', 5.0f, 1.0f);
  there_and_back("st.shared.v4.b16 [%r20], {%rs1, %rs2, %rs1, 9};", "ld.shared.v2.u32 {_, %r9}, [%r20];", 'r', 5,
                 0x90005);
  there_and_back("st.shared.v2.u64 [%r20], {%rd1, -1};", "ld.shared.v2.b64 {%rd4, %rd9}, [%r20];", 'd', 5, -1);
  there_and_back("st.global.v2.u32 [%rd8], {%r1, %r2};", "ld.global.relaxed.gpu.L1::no_allocate.u32 %r9, [%rd8+4];",
                 'r', 5, 0x55667788);
  there_and_back("st.volatile.global.u32 [%rd8], %r1;", "ld.global.nc.u32 %r9, [%rd8+0];", 'r', 5, 5);
}

TEST(Instructions, GenericAddresses) {
  check(
      "mov.u32 %r20, shared; cvt.u64.u32 %rd10, %r20; cvta.shared.u64 %rd11, %rd10; shl.b32 %r21, %r0, 3;\n"
      "cvt.u64.u32 %rd12, %r21; add.s64 %rd11, %rd11, %rd12; st.u64 [%rd11], %rd1;\n"
      "cvta.to.shared.u64 %rd13, %rd11; cvt.u32.u64 %r22, %rd13; ld.shared.u64 %rd9, [%r22];",
      'd', {{5, 0, 0, 5}, {6, 0, 0, 6}});
  check("cvta.global.u64 %rd10, %rd8; st.u64 [%rd10], %rd1; ld.u64 %rd9, [%rd8];", 'd', {{5, 0, 0, 5}, {6, 0, 0, 6}});
  check("mov.b64 %rd10, in; ld.param.u32 %r9, [in]; ld.param.u32 %r10, [%rd10]; sub.u32 %r9, %r9, %r10;", 'r',
        {{0, 0, 0, 0}});
  // Local memory: each thread has its own.
  check(
      ".local .align 8 .b8 depot[16]; mov.b64 %rd10, depot; cvta.local.u64 %rd11, %rd10; st.local.u64 [%rd10+8], "
      "%rd1;\n"
      "ld.u64 %rd9, [%rd11+8];",
      'd', {{5, 0, 0, 5}, {6, 0, 0, 6}, {7, 0, 0, 7}});
}

TEST(Instructions, Atomics) {
  const std::string zero = "st.global.u64 [%rd8], %rd3; bar.sync 0;\n";
  const auto atomic = [&](const std::string& operation, const std::vector<Row>& rows) {  // memory b, operand a
    const char size = operation.back() == '4' ? 'd' : 'r';
    const std::string registers = size == 'd' ? "%rd10, [%rd8], %rd1" : "%r10, [%rd8], %r1";
    check("st.global.u64 [%rd8], %rd2; bar.sync 0; atom.global." + operation + " " + registers +
              (operation[0] == 'c' ? (size == 'd' ? ", %rd3;" : ", %r3;") : ";") +
              " bar.sync 0; ld.global.u64 %rd9, [%rd8];",
          'd', rows);
  };
  atomic("add.u32", {{5, 6, 0, 11}, {-1, 6, 0, 5}});
  atomic("add.u64", {{5, 0x100000000, 0, 0x100000005}});
  atomic("min.s32", {{-1, 6, 0, 0xffffffff}});
  atomic("min.u32", {{-1, 6, 0, 6}});
  atomic("max.s32", {{-1, 6, 0, 6}});
  atomic("max.u32", {{-1, 6, 0, 0xffffffff}});
  atomic("max.s64", {{-1, 6, 0, 6}});
  atomic("and.b32", {{12, 10, 0, 8}});
  atomic("or.b32", {{12, 10, 0, 14}});
  atomic("xor.b64", {{12, 10, 0, 6}});
  atomic("exch.b32", {{12, 10, 0, 12}});
  atomic("inc.u32", {{12, 10, 0, 11}, {12, 12, 0, 0}});
  atomic("dec.u32", {{12, 10, 0, 9}, {12, 0, 0, 12}, {12, 13, 0, 12}});
  atomic("cas.b32", {{10, 10, 7, 7}, {11, 10, 7, 10}});
  atomic("cas.b64", {{10, 10, 7, 7}, {11, 10, 7, 10}});
  // All lanes on one word, results in the order of the lanes.
  const Lanes a = run_snippet(
      "mov.u32 %r20, shared; mov.u32 %r21, 0; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r20], %r21;\n"
      "bar.sync 0; atom.shared.add.u32 %r9, [%r20], 2;",
      'r');
  for (size_t lane = 0; lane < 32; ++lane) EXPECT_EQ(a[lane], 2 * lane);
  check(zero + "red.global.add.u32 [%rd8], %r1; bar.sync 0; ld.global.u64 %rd9, [%rd8];", 'd', {{5, 0, 2, 7}});
}

// What lanes do together.

Lanes numbers(uint64_t first, uint64_t step) {
  Lanes x;
  for (size_t lane = 0; lane < 32; ++lane) x[lane] = first + step * lane;
  return x;
}
void expect_lanes(const Lanes& result, uint64_t (*expected)(uint64_t lane)) {
  for (uint64_t lane = 0; lane < 32; ++lane) EXPECT_EQ(result[lane], expected(lane)) << lane;
  EXPECT_EQ(take_findings(), "");
}

TEST(Instructions, Shuffles) {
  const auto shuffle = [](const std::string& operands) {
    return run_snippet("shfl.sync." + operands + ", -1;", 'r', numbers(100, 1));
  };
  const auto inside = [](const std::string& operands) {
    return run_snippet("shfl.sync." + operands + ", -1;", 'p', numbers(100, 1));
  };
  expect_lanes(shuffle("bfly.b32 %r9, %r1, 1, 31"), [](uint64_t l) { return 100 + (l ^ 1); });
  expect_lanes(shuffle("up.b32 %r9, %r1, 3, 0"), [](uint64_t l) { return 100 + (l < 3 ? l : l - 3); });
  expect_lanes(inside("up.b32 %r9|%p9, %r1, 3, 0"), [](uint64_t l) { return uint64_t{l >= 3}; });
  expect_lanes(shuffle("down.b32 %r9, %r1, 3, 31"), [](uint64_t l) { return 100 + (l > 28 ? l : l + 3); });
  expect_lanes(inside("down.b32 %r9|%p9, %r1, 3, 31"), [](uint64_t l) { return uint64_t{l <= 28}; });
  expect_lanes(shuffle("idx.b32 %r9, %r1, 5, 31"), [](uint64_t) { return uint64_t{105}; });
  expect_lanes(shuffle("idx.b32 %r9, %r1, 37, 31"), [](uint64_t) { return uint64_t{105}; });
  // Segments of 8 lanes: c = (32 - 8) << 8 | clamp, as __shfl_sync(…, 8) makes it.
  expect_lanes(shuffle("idx.b32 %r9, %r1, 5, 0x181f"), [](uint64_t l) { return 100 + l / 8 * 8 + 5; });
  expect_lanes(shuffle("up.b32 %r9, %r1, 3, 0x1800"), [](uint64_t l) { return 100 + (l % 8 < 3 ? l : l - 3); });
  expect_lanes(shuffle("down.b32 %r9, %r1, 3, 0x181f"), [](uint64_t l) { return 100 + (l % 8 > 4 ? l : l + 3); });
  expect_lanes(shuffle("bfly.b32 %r9, %r1, 4, 0x181f"), [](uint64_t l) { return 100 + (l ^ 4); });
  expect_lanes(shuffle("bfly.b32 %r9, %r1, 8, 0x181f"), [](uint64_t l) { return 100 + (l & 8 ? l ^ 8 : l); });
  expect_lanes(shuffle("down.b32 %r9, %r1, 1, 3"), [](uint64_t l) { return 100 + (l < 3 ? l + 1 : l); });
  // Each half with a mask of its own.
  const Lanes halves = run_snippet(
      "setp.lt.u32 %p1, %r0, 16; selp.b32 %r20, 0xffff, 0xffff0000, %p1;\n"
      "shfl.sync.bfly.b32 %r9, %r1, 1, 31, %r20;",
      'r', numbers(0, 1));
  expect_lanes(halves, [](uint64_t l) { return l ^ 1; });
}

TEST(Instructions, VotesAndReductions) {
  const auto below = [](int n, const std::string& what, char kind) {  // the predicate: lane < n
    return run_snippet("setp.lt.u32 %p1, %r0, " + std::to_string(n) + "; " + what, kind, numbers(0, 1));
  };
  EXPECT_EQ(below(5, "vote.sync.ballot.b32 %r9, %p1, -1;", 'r')[7], 31u);
  EXPECT_EQ(below(5, "vote.sync.ballot.b32 %r9, !%p1, -1;", 'r')[7], 0xffffffe0u);
  EXPECT_EQ(below(5, "vote.sync.any.pred %p9, %p1, -1;", 'p')[7], 1u);
  EXPECT_EQ(below(0, "vote.sync.any.pred %p9, %p1, -1;", 'p')[7], 0u);
  EXPECT_EQ(below(31, "vote.sync.all.pred %p9, %p1, -1;", 'p')[7], 0u);
  EXPECT_EQ(below(32, "vote.sync.all.pred %p9, %p1, -1;", 'p')[7], 1u);
  EXPECT_EQ(below(31, "vote.sync.uni.pred %p9, %p1, -1;", 'p')[7], 0u);
  EXPECT_EQ(below(0, "vote.sync.uni.pred %p9, %p1, -1;", 'p')[7], 1u);
  EXPECT_EQ(below(16, "@!%p1 bra END; vote.sync.all.pred %p9, %p1, 0xffff; END:", 'p')[7], 1u);
  EXPECT_EQ(below(16, "mov.u32 %r9, 0; @!%p1 bra END; activemask.b32 %r9; END:", 'r')[7], 0xffffu);
  const struct {
    const char* name;
    uint32_t expected;
  } reductions[] = {{"add.u32", 496u - 32}, {"add.s32", 496u - 32}, {"min.s32", static_cast<uint32_t>(-1)},
                    {"min.u32", 0u},        {"max.s32", 30u},       {"max.u32", static_cast<uint32_t>(-1)},
                    {"and.b32", 0u},        {"or.b32", ~0u},        {"xor.b32", 0xffffffe0u}};
  for (const auto& [name, expected] : reductions)
    EXPECT_EQ(run_snippet(std::string("redux.sync.") + name + " %r9, %r1, -1;", 'r',
                          numbers(static_cast<uint64_t>(-1), 1))[3],
              expected)
        << name;
  EXPECT_EQ(take_findings(), "");
}

// Control: lanes that part and come together again.

TEST(Instructions, Predicated) {
  const std::string odd = "and.b32 %r20, %r0, 1; setp.eq.u32 %p1, %r20, 1; mov.u32 %r9, 7;\n";
  expect_lanes(run_snippet(odd + "@%p1 mov.u32 %r9, 8;", 'r'), [](uint64_t l) { return 7 + l % 2; });
  expect_lanes(run_snippet(odd + "@!%p1 mov.u32 %r9, 8;", 'r'), [](uint64_t l) { return 8 - l % 2; });
}

TEST(Instructions, NestedBranches) {
  expect_lanes(run_snippet(R"(
    mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 16; and.b32 %r20, %r0, 1; setp.eq.u32 %p2, %r20, 1;
    @%p1 bra LOW;
    @%p2 bra HIGH_ODD;
    mov.u32 %r9, 4; bra.uni JOIN_HIGH;
    HIGH_ODD: mov.u32 %r9, 3;
    JOIN_HIGH: add.u32 %r9, %r9, 10; bra JOIN;
    LOW: @!%p2 bra LOW_EVEN;
    mov.u32 %r9, 1; bra JOIN;
    LOW_EVEN: mov.u32 %r9, 2;
    JOIN: shfl.sync.bfly.b32 %r9, %r9, 16, 31, -1;)",
                           'r'),
               [](uint64_t l) { return l < 16 ? 14 - l % 2 : 2 - l % 2; });
}

TEST(Instructions, LoopsOfDifferentLengths) {
  expect_lanes(run_snippet(R"(
    mov.u32 %r9, 0; mov.u32 %r20, 0;
    LOOP: setp.ge.u32 %p1, %r20, %r0; @%p1 bra DONE;
    add.u32 %r9, %r9, %r20; add.u32 %r20, %r20, 1; bra LOOP;
    DONE: bar.sync 0; redux.sync.max.u32 %r21, %r20, -1; add.u32 %r9, %r9, %r21;)",
                           'r'),
               [](uint64_t l) { return l * (l - 1) / 2 + 31; });
}

TEST(Instructions, EarlyExitsLeaveTheRest) {
  const Lanes result = run_snippet("setp.lt.u32 %p1, %r0, 8; @%p1 exit; bar.sync 0; activemask.b32 %r9;", 'r');
  EXPECT_EQ(result[7], ~uint64_t{0});
  EXPECT_EQ(result[8], 0xffffff00u);
  // The lanes that stay are already at the barrier when the others leave.
  const Lanes late = run_snippet(
      "setp.ge.u32 %p1, %r0, 8; @%p1 bra STAY; add.u32 %r20, %r0, 1; bra OUT; STAY: bar.sync 0; mov.u32 %r9, 1;\n"
      "bra END; OUT: exit; END:",
      'r');
  EXPECT_EQ(late[8], 1u);
  EXPECT_EQ(late[7], ~uint64_t{0});
  EXPECT_EQ(take_findings(), "");
}

// nvcc puts seldom-used blocks at the end, from where they jump back before a barrier.
TEST(Instructions, ColdBlocksComeBack) {
  expect_lanes(run_snippet(R"(
    setp.eq.u32 %p1, %r0, 3; mov.u32 %r9, 1;
    @%p1 bra COLD;
    BACK: bar.sync 0; redux.sync.add.u32 %r9, %r9, -1; bra END;
    COLD: mov.u32 %r9, 100; bra BACK;
    END:)",
                           'r'),
               [](uint64_t) { return uint64_t{131}; });
}

// Registers whose lives do not overlap share a place; lanes that are elsewhere must not lose their values.
TEST(Instructions, SharedPlacesUnderDivergence) {
  expect_lanes(run_snippet(R"(
    setp.lt.u32 %p1, %r0, 16; @%p1 bra LOW;
    add.u32 %r20, %r0, 1000; add.u32 %r21, %r20, 1; bar.warp.sync 0xffff0000; add.u32 %r9, %r20, %r21; bra END;
    LOW: add.u32 %r22, %r0, 5; add.u32 %r23, %r22, 7; bar.warp.sync 0xffff; add.u32 %r9, %r22, %r23;
    END:)",
                           'r'),
               [](uint64_t l) { return l < 16 ? 2 * l + 17 : 2 * l + 2001; });
  expect_lanes(run_snippet(R"(
    mov.u32 %r9, 0; mov.u32 %r20, 0;
    LOOP: add.u32 %r20, %r20, 1; mul.lo.u32 %r21, %r20, %r0; setp.lt.u32 %p1, %r20, 4; @%p1 bra LOOP;
    mov.u32 %r22, 3; add.u32 %r9, %r21, %r22;)",
                           'r'),
               [](uint64_t l) { return 4 * l + 3; });
}

TEST(Instructions, ScopesOfInlineAssembly) {
  expect_lanes(run_snippet("{ .reg .b32 x; add.u32 x, %r0, 1; mov.u32 %r20, x; }\n"
                           "{ .reg .b32 x; .reg .pred p; mov.u32 x, 5; setp.eq.u32 p, x, 5; @p add.u32 %r9, %r20, x; }",
                           'r'),
               [](uint64_t l) { return l + 6; });
  EXPECT_THROW(load_module(kernel_text("{ L: bra L; } { L: bra L; }", 'd')), std::runtime_error);
}

}  // namespace
}  // namespace softgpu

// mma, ldmatrix and cp.async against the descriptions of the PTX ISA (9.0, "Warp-level Matrix Instructions" and
// "Asynchronous Copy Operations").
#include "tests/softgpu/snippet.h"

namespace softgpu {
namespace {

// A small integer: exact.
uint16_t bf16(int x) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16); }

// mma.m16n8k16: "groupID = %laneid >> 2, threadID_in_group = %laneid % 4"; element i of a fragment stands at
//   a: row = groupID for 0 <= i < 2 or 4 <= i < 6, else groupID + 8; col = threadID_in_group * 2 + (i & 1), + 8 for i
//   >= 4 b: row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2; col = groupID c, d: row = groupID for i < 2, else
//   groupID + 8; col = threadID_in_group * 2 + (i & 1)
TEST(Matrix, Product) {
  const auto a = [](int row, int col) { return (row * 16 + col) % 251 - 125; };  // integers below 256: exact in bf16
  const auto b = [](int row, int col) { return (row * 8 + col) * 3 % 241 - 120; };
  const auto c = [](int row, int col) { return 1000 * row + col; };
  Lanes a_low{}, a_high{}, b_both{};
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, thread = lane % 4;
    uint64_t fragment[8], of_b = 0;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      fragment[i] = bf16(a(row, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)));
    }
    for (int i = 0; i < 4; ++i) of_b |= uint64_t{bf16(b(thread * 2 + (i & 1) + (i >= 2 ? 8 : 0), group))} << 16 * i;
    const auto l = static_cast<size_t>(lane);
    for (int i = 0; i < 4; ++i) {
      a_low[l] |= fragment[i] << 16 * i;
      a_high[l] |= fragment[4 + i] << 16 * i;
    }
    b_both[l] = of_b;
  }
  for (int i = 0; i < 4; ++i) {  // element i of d
    const std::string text =
        "mov.b64 {%r10, %r11}, %rd1; mov.b64 {%r12, %r13}, %rd2; mov.b64 {%r14, %r15}, %rd3;\n"
        "shr.u32 %r20, %r0, 2; and.b32 %r21, %r0, 3; shl.b32 %r21, %r21, 1;\n"  // row, column of c0
        "mad.lo.u32 %r22, %r20, 1000, %r21; cvt.rn.f32.u32 %f10, %r22;\n"
        "add.u32 %r22, %r22, 1; cvt.rn.f32.u32 %f11, %r22; add.u32 %r22, %r22, 7999; cvt.rn.f32.u32 %f12, %r22;\n"
        "add.u32 %r22, %r22, 1; cvt.rn.f32.u32 %f13, %r22;\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f14, %f15, %f16, %f17}, {%r10, %r11, %r12, %r13}, "
        "{%r14, %r15}, {%f10, %f11, %f12, %f13};\nmov.f32 %f9, %f1" +
        std::to_string(4 + i) + ";";
    const Lanes d = run_snippet(text, 'f', a_low, a_high, b_both);
    for (int lane = 0; lane < 32; ++lane) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), col = lane % 4 * 2 + (i & 1);
      int expected = c(row, col);
      for (int k = 0; k < 16; ++k) expected += a(row, k) * b(k, col);
      EXPECT_EQ(std::bit_cast<float>(static_cast<uint32_t>(d[static_cast<size_t>(lane)])), static_cast<float>(expected))
          << i << " " << lane;
    }
  }
  EXPECT_EQ(take_findings(), "");
}

// Matrix m, row r: 8 elements 64·m + 8·r + column, at shared byte 16·(8·m + r); all indices differ. "Threads 0-7 hold
// the addresses of the first matrix's rows, 8-15 of the second's, …"; thread t receives of each matrix the elements of
// row t / 4, columns 2·(t % 4) and the next; with .trans the matrix is loaded in column-major order.
void check_ldmatrix(int count, bool transposed, int wanted) {
  const std::string fill =
      "mov.u32 %r20, shared; shl.b32 %r21, %r0, 4; add.u32 %r20, %r20, %r21; shl.b32 %r22, %r0, 3; mov.u32 %r23, 0;\n"
      "LOOP: cvt.u16.u32 %rs4, %r22; st.shared.u16 [%r20], %rs4; add.u32 %r20, %r20, 2; add.u32 %r22, %r22, 1;\n"
      "add.u32 %r23, %r23, 1; setp.lt.u32 %p1, %r23, 8; @%p1 bra LOOP; bar.sync 0; sub.u32 %r20, %r20, 16;\n";
  const std::string results = count == 1 ? "{%r10}" : count == 2 ? "{%r10, %r11}" : "{%r10, %r11, %r12, %r13}";
  const std::string load = "ldmatrix.sync.aligned.m8n8.x" + std::to_string(count) + (transposed ? ".trans" : "") +
                           ".shared.b16 " + results + ", [%r20];\nmov.u32 %r9, %r1" + std::to_string(wanted) + ";";
  // Lanes beyond the rows that are used have addresses that nobody may look at.
  const std::string spoil = "setp.ge.u32 %p2, %r0, " + std::to_string(8 * count) + "; @%p2 mov.u32 %r20, 1;\n";
  const Lanes result = run_snippet(fill + spoil + load, 'r');
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, col = 2 * (lane % 4);
    const auto element = [&](int r, int c) { return static_cast<uint64_t>(64 * wanted + 8 * r + c); };
    const uint64_t low = transposed ? element(col, row) : element(row, col);
    const uint64_t high = transposed ? element(col + 1, row) : element(row, col + 1);
    EXPECT_EQ(result[static_cast<size_t>(lane)], low | high << 16)
        << count << (transposed ? " transposed " : " ") << wanted << " " << lane;
  }
  EXPECT_EQ(take_findings(), "");
}
TEST(Matrix, Load) {
  for (const int count : {1, 2, 4})
    for (int wanted = 0; wanted < count; ++wanted)
      for (const bool transposed : {false, true}) check_ldmatrix(count, transposed, wanted);
}

TEST(Matrix, NeedsAllLanes) {
  run_snippet(
      "setp.eq.u32 %p1, %r0, 3; @%p1 bra END; mov.u32 %r20, shared;\n"
      "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r20]; END:",
      'r');
  EXPECT_NE(take_findings().find("barrier"), std::string::npos);
}

// Copies into the elements at shared + 16·lane (+ 512, …), from `in`: rows a, b, c of 8 bytes for each lane.
const std::string addresses = "mov.u32 %r20, shared; shl.b32 %r21, %r0, 4; add.u32 %r20, %r20, %r21;\n";
std::string copy(int slot, const std::string& source_bytes = "") {
  return "cp.async.ca.shared.global [%r20+" + std::to_string(512 * slot) + "], [%rd7+" + std::to_string(256 * slot) +
         "], 8" + source_bytes + ";\n";
}
std::string load(int slot) { return "ld.shared.u64 %rd9, [%r20+" + std::to_string(512 * slot) + "];\n"; }
const std::string commit = "cp.async.commit_group;\n";
std::string wait(int n) { return "cp.async.wait_group " + std::to_string(n) + ";\n"; }

Lanes values(uint64_t first) {
  Lanes x;
  for (size_t lane = 0; lane < 32; ++lane) x[lane] = first + lane;
  return x;
}
Lanes run_copies(const std::string& text) {
  return run_snippet(addresses + text, 'd', values(100), values(200), values(300));
}

TEST(AsyncCopy, LandsAtTheWait) {
  EXPECT_EQ(run_copies(copy(0) + commit + wait(0) + load(0)), values(100));
  EXPECT_EQ(run_copies(copy(0) + "cp.async.wait_all;\n" + load(0)), values(100));
  EXPECT_EQ(run_copies("mov.u32 %r22, 8;\n" + copy(0, ", %r22") + commit + wait(0) + load(0)), values(100));
  EXPECT_EQ(take_findings(), "");
}

TEST(AsyncCopy, GroupsLandInTheirOrder) {
  const std::string three = copy(0) + commit + copy(1) + commit + copy(2) + commit;
  EXPECT_EQ(run_copies(three + wait(2) + load(0) + wait(0)), values(100));
  EXPECT_EQ(run_copies(three + wait(1) + load(1) + wait(0)), values(200));
  EXPECT_EQ(run_copies(three + wait(0) + load(2)), values(300));
  EXPECT_EQ(run_copies(copy(0) + copy(1) + commit + commit + wait(1) + load(1)), values(200));  // an empty group
  EXPECT_EQ(take_findings(), "");
}

TEST(AsyncCopy, OpenOnesReadAsNan) {
  for (const std::string& open :
       {copy(0) + commit + copy(1) + commit + wait(1) + load(1) + wait(0), copy(1) + load(1) + "cp.async.wait_all;\n",
        copy(0) + commit + copy(1) + wait(0) + load(1) + "cp.async.wait_all;\n"}) {
    EXPECT_EQ(run_copies(open)[5], ~uint64_t{0});
    EXPECT_NE(take_findings().find("missing_wait"), std::string::npos) << open;
  }
}

TEST(AsyncCopy, SourceSizeZeroFillsWithZeros) {
  // Lanes from 16 on read nothing, not even from an address that is not there.
  const Lanes result = run_copies("setp.lt.u32 %p1, %r0, 16; selp.b32 %r22, 8, 0, %p1; selp.b64 %rd7, %rd7, 0, %p1;\n" +
                                  copy(0, ", %r22") + commit + wait(0) + load(0));
  for (size_t lane = 0; lane < 32; ++lane) EXPECT_EQ(result[lane], lane < 16 ? 100 + lane : 0) << lane;
  EXPECT_EQ(take_findings(), "");
}

TEST(AsyncCopy, OpenAtTheEndOfTheBlock) {
  run_copies(copy(0) + commit);
  EXPECT_NE(take_findings().find("missing_wait in test at PTX:"), std::string::npos);
  run_copies(copy(0) + commit + wait(0) + commit);  // only an empty group
  EXPECT_EQ(take_findings(), "");
}

TEST(AsyncCopy, SourceOutOfBounds) {
  run_copies("add.s64 %rd7, %rd7, 100000;\n" + copy(0) + commit + wait(0));
  EXPECT_NE(take_findings().find("out_of_bounds"), std::string::npos);
}

}  // namespace
}  // namespace softgpu

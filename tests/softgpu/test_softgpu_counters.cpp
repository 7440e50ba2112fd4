// What the counters say of accesses counted by hand.
#include "tests/softgpu/snippet.h"

namespace softgpu {
namespace {

// Of the snippet alone: without what the kernel around it does.
Counters count(const std::string& snippet) {
  const auto of = [](const std::string& text) {
    softgpu_reset_counters();
    run_snippet(text, 'd');
    Counters c;
    EXPECT_TRUE(softgpu_counters("test", &c));
    return c;
  };
  const Counters empty = of("");
  Counters c = of(snippet);
  auto* fields = reinterpret_cast<uint64_t*>(&c);
  const auto* less = reinterpret_cast<const uint64_t*>(&empty);
  for (size_t i = 0; i < sizeof c / sizeof *fields; ++i) fields[i] -= less[i];
  EXPECT_EQ(take_findings(), "");
  return c;
}

// Lane · stride, from the beginning of the 768 bytes of `in` or the 4096 of shared.
std::string global_address(int stride) {
  return "ld.param.u64 %rd10, [in]; mul.wide.u32 %rd11, %r0, " + std::to_string(stride) +
         "; add.s64 %rd10, %rd10, %rd11;\n";
}
std::string shared_address(int stride) {
  return "mov.u32 %r20, shared; mad.lo.u32 %r20, %r0, " + std::to_string(stride) + ", %r20;\n";
}

TEST(Counters, SectorsOfGlobalAccesses) {
  const struct {
    const char* what;
    int stride;
    const char* load;
    uint64_t bytes, sectors;
  } cases[] = {{"neighbours", 4, "ld.global.u32 %r4, [%rd10];", 128, 4},
               {"neighbours, off by one", 4, "ld.global.u32 %r4, [%rd10+4];", 128, 5},
               {"every second", 8, "ld.global.u32 %r4, [%rd10];", 128, 8},
               {"every fourth", 16, "ld.global.u32 %r4, [%rd10];", 128, 16},
               {"16 bytes each", 16, "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd10];", 512, 16},
               {"all the same", 0, "ld.global.u32 %r4, [%rd10];", 128, 1},
               {"half of the lanes", 4, "setp.lt.u32 %p1, %r0, 16; @%p1 ld.global.u32 %r4, [%rd10];", 64, 2}};
  for (const auto& c : cases) {
    const Counters got = count(global_address(c.stride) + c.load);
    EXPECT_EQ(got.global_read_bytes, c.bytes) << c.what;
    EXPECT_EQ(got.global_read_sectors, c.sectors) << c.what;
    EXPECT_EQ(got.global_write_sectors, 0u) << c.what;
    EXPECT_EQ(got.global, 1u) << c.what;
  }
  // Of a copy to shared memory what it reads counts, once.
  const Counters copy = count(global_address(16) + shared_address(16) +
                              "cp.async.cg.shared.global [%r20], [%rd10], 16; cp.async.commit_group; "
                              "cp.async.wait_group 0;");
  EXPECT_EQ(copy.global_read_bytes, 512u);
  EXPECT_EQ(copy.global_read_sectors, 16u);
  EXPECT_EQ(copy.global_write_sectors, 0u);
  const Counters backwards = count(
      "ld.param.u64 %rd10, [out]; sub.u32 %r20, 31, %r0; mul.wide.u32 %rd11, %r20, 8; add.s64 %rd10, %rd10, %rd11;\n"
      "st.global.u64 [%rd10], %rd1; bar.sync 0;");
  EXPECT_EQ(backwards.global_write_bytes, 256u);
  EXPECT_EQ(backwards.global_write_sectors, 8u);
}

TEST(Counters, BankConflicts) {
  const struct {
    const char* what;
    int stride;
    const char* store;
    uint64_t conflicts;
  } cases[] = {{"neighbours", 4, "st.shared.u32 [%r20], %r1;", 0},
               {"every second word", 8, "st.shared.u32 [%r20], %r1;", 1},
               {"one bank", 128, "st.shared.u32 [%r20], %r1;", 31},
               {"one column of padded rows", 132, "st.shared.u32 [%r20], %r1;", 0},
               {"8 bytes each", 8, "st.shared.u64 [%r20], %rd1;", 0},
               {"8 of 16 bytes", 16, "st.shared.u64 [%r20], %rd1;", 2},
               {"16 bytes each", 16, "st.shared.v2.u64 [%r20], {%rd1, %rd1};", 0},
               {"16 bytes of rows of 128", 128, "st.shared.v2.u64 [%r20], {%rd1, %rd1};", 28},
               {"2 bytes each", 2, "st.shared.u16 [%r20], %rs1;", 0}};
  for (const auto& c : cases) {
    const Counters got = count(shared_address(c.stride) + c.store);
    EXPECT_EQ(got.shared_conflicts, c.conflicts) << c.what;
    EXPECT_EQ(got.shared_requests, 1u) << c.what;
  }
  // All lanes read one word.
  EXPECT_EQ(count(shared_address(4) +
                  "st.shared.u32 [%r20], %r1; bar.sync 0; mov.u32 %r20, shared; ld.shared.u32 %r4, [%r20];")
                .shared_conflicts,
            0u);
}

// Rows of 128 bytes, of which each lane addresses 16: plain, all of a matrix's rows begin in one bank; swizzled by the
// row's number they spread over all banks.
TEST(Counters, BankConflictsOfLdmatrix) {
  const auto load = [](const std::string& offset) {
    return count(shared_address(128) + offset +
                 "st.shared.v2.u64 [%r20], {%rd1, %rd1}; bar.sync 0;\n"
                 "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r20];");
  };
  EXPECT_EQ(load("").shared_conflicts, 28u + 28u);
  EXPECT_EQ(load("and.b32 %r21, %r0, 7; shl.b32 %r21, %r21, 4; add.u32 %r20, %r20, %r21;\n").shared_conflicts, 0u);
  EXPECT_EQ(load("").ldmatrix, 1u);
}

TEST(Counters, ProductsAndTheirLoop) {
  const std::string mma =
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f10, %f11, %f12, %f13}, {%r10, %r10, %r10, %r10}, "
      "{%r10, %r10}, {%f10, %f11, %f12, %f13};\n";
  const Counters c = count(
      "mov.u32 %r10, 0; mov.f32 %f10, 0f00000000; mov.f32 %f11, %f10; mov.f32 %f12, %f10; mov.f32 %f13, %f10; mov.u32 "
      "%r20, 0;\n"
      "LOOP: " +
      mma + mma + "add.u32 %r20, %r20, 1; setp.lt.u32 %p1, %r20, 5; @%p1 bra LOOP;");
  EXPECT_EQ(c.mma, 10u);
  EXPECT_EQ(c.mma_flops, 10u * 2 * 16 * 8 * 16);
  EXPECT_EQ(c.loop_mma, 10u);
  EXPECT_EQ(c.loop_instructions, 5u * 5);
  EXPECT_EQ(c.instructions, 6u + 25);
  EXPECT_EQ(c.thread_instructions, 32u * 31);
  EXPECT_EQ(c.control, 5u);
}

// Each of the two ways is one instruction of the warp; a warp that waits for its other lanes is counted once.
TEST(Counters, Divergence) {
  const Counters c =
      count("setp.lt.u32 %p1, %r0, 8; @%p1 bra LOW; mov.u32 %r9, 1; bra END; LOW: mov.u32 %r9, 2; END: bar.sync 0;");
  EXPECT_EQ(c.instructions, 6u);
  EXPECT_EQ(c.thread_instructions, 32u + 32 + 24 + 24 + 8 + 32);
  EXPECT_EQ(c.sync, 1u);
}

}  // namespace
}  // namespace softgpu

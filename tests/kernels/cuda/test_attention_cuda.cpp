// Attention on CUDA against the double loop: the tensor core kernels and the plain ones, ragged layouts, prefixes, the
// same bits again, extreme scores, what cannot be called; and on softgpu, what the main loops spend on an mma.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "kernels/attention.h"
#include "tests/kernels/attention_reference.h"
#include "tests/support/on_gpu.h"
#include "tests/support/softgpu.h"

namespace notellm {
namespace {

using namespace test;

// The op's buffers, all results NaN at first; the workspace is not written at all.
template <class T>
struct GpuOp {
  Stream stream{Device::cuda};
  Layout layout;
  Heads h;
  AttentionPlan plan;
  OnGpu<int32_t> tables;
  OnGpu<T> q, kv, d_o, o, dq, dkv;
  OnGpu<float> lse;
  int64_t workspace_size;
  Buffer workspace;

  explicit GpuOp(const Reference<double>& from)
      : layout(from.layout),
        h(from.h),
        plan(layout.segments, layout.query_tokens, layout.tokens),
        tables(stream, table_copy()),
        q(stream, converted<T>(from.q)),
        kv(stream, converted<T>(from.kv)),
        d_o(stream, converted<T>(from.d_o)),
        o(stream, std::vector<T>(from.q.size(), T(NAN))),
        dq(stream, std::vector<T>(from.q.size(), T(NAN))),
        dkv(stream, std::vector<T>(from.kv.size(), T(NAN))),
        lse(stream, std::vector<float>(from.lse.size(), NAN)) {
    plan.set_device_tables(tables.tensor({plan.tables().size()}));
    workspace_size = attention_workspace(stream, plan, rows(q), keys(kv));
    workspace = Buffer(workspace_size * 4 + 16, Memory::device);
  }
  std::vector<int32_t> table_copy() {
    const auto span = plan.tables().span<int32_t>();
    return {span.begin(), span.end()};
  }
  Tensor rows(const OnGpu<T>& v) { return v.tensor({layout.queries(), h.heads, h.head_dim}); }
  Tensor keys(const OnGpu<T>& v) { return v.tensor({layout.tokens, 2 * h.kv_heads, h.head_dim}); }
  Tensor lse_tensor() { return lse.tensor({layout.queries(), h.heads}); }

  GpuOp& forward() {
    attention(stream, plan, rows(q), keys(kv), rows(o), lse_tensor());
    return *this;
  }
  GpuOp& backward() {
    attention_backward(stream, plan, rows(d_o), rows(q), keys(kv), rows(o), lse_tensor(), rows(dq), keys(dkv),
                       Tensor(workspace.data(), DType::f32, {workspace_size}));
    return *this;
  }
};

void compare_f32(const Layout& layout, const Heads& h) {
  SCOPED_TRACE(fmt::format("f32, {} heads, {} kv heads, head_dim {}", h.heads, h.kv_heads, h.head_dim));
  Reference<double> expected = random_reference<float>(layout, h, 7);
  expected.forward();
  expected.backward();
  const Tolerance tolerance(expected);
  GpuOp<float> run(expected);
  run.forward().backward();
  EXPECT_LE(max_error(run.lse.download(), expected.lse), tolerance.lse);
  EXPECT_LE(max_error(run.o.download(), expected.o), tolerance.o);
  EXPECT_LE(max_error(run.dq.download(), expected.dq), tolerance.dq);
  EXPECT_LE(max_error(run.dkv.download(), expected.dkv), tolerance.dkv);
}

// bf16 may err twice as much as a plain loop of the same precision; and, where that happens to err little, as f32 may.
void compare_bf16(const Layout& layout, const Heads& h) {
  SCOPED_TRACE(fmt::format("bf16, {} heads, {} kv heads, head_dim {}", h.heads, h.kv_heads, h.head_dim));
  Reference<double> expected = random_reference<bf16>(layout, h, 11);
  expected.forward();
  expected.backward();
  const Reference<float> plain =
      h.head_dim == 64 || h.head_dim == 128 ? plain_bf16_loop(expected) : plain_loop<bf16>(expected);
  GpuOp<bf16> run(expected);
  run.forward().backward();
  const Tolerance f32(expected);
  EXPECT_LE(max_error(run.lse.download(), expected.lse), f32.lse);
  EXPECT_LE(max_error(run.o.download(), expected.o), 2 * max_error(plain.o, expected.o) + f32.o);
  EXPECT_LE(max_error(run.dq.download(), expected.dq), 2 * max_error(plain.dq, expected.dq) + f32.dq);
  EXPECT_LE(max_error(run.dkv.download(), expected.dkv), 2 * max_error(plain.dkv, expected.dkv) + f32.dkv);
}

TEST(AttentionCuda, LengthsAroundTiles) {
  for (int length : {1, 2, 31, 63, 64, 65, 128, 200}) {
    SCOPED_TRACE(length);
    compare_bf16(Layout().add(length, length), {1, 1, 64});
    compare_bf16(Layout().add(length, length), {1, 1, 128});
  }
}

TEST(AttentionCuda, RaggedWithPrefixesAndSubsets) {
  for (const Heads& h : {Heads{1, 1, 64}, {2, 1, 128}, {4, 1, 64}, {6, 2, 64}}) compare_bf16(ragged(), h);
}

TEST(AttentionCuda, PrefixesShorterAndLongerThanATile) {
  for (int prefix : {1, 30, 64, 130}) {
    SCOPED_TRACE(prefix);
    Layout layout;
    layout.add(prefix, prefix);
    layout.add(70, 70, 0, prefix).add(3, 3, 0, prefix).add(100, 2, 0, prefix);
    compare_bf16(layout, {2, 2, 64});
    compare_bf16(layout, {2, 1, 128});
  }
}

// Two prefixes whose users alternate, with more queries than one block sums; one of them has no queries of its own.
Layout many_users() {
  Layout layout;
  layout.add(20, 20).add(35, 0);
  for (int i = 0; i < 60; ++i) layout.add(18 + 5 * i % 16, 1 + 7 * i % 18, i % 2 ? 0 : 20, i % 2 ? 20 : 55);
  return layout;
}
TEST(AttentionCuda, PrefixesOfManySegments) {
  Layout layout = many_users();
  for (int i = 0; i < 50; ++i) layout.add(20, 20, i % 2 ? 0 : 20, i % 2 ? 20 : 55);
  GpuOp<bf16> run(random_reference<bf16>(layout, {1, 1, 64}, 3));
  EXPECT_GT(run.plan.gpu().key_sum_count, 1);  // the case that is meant
  EXPECT_LE(run.plan.gpu().rows, layout.tokens / 2);
  compare_bf16(layout, {2, 1, 64});
  compare_f32(layout, {1, 1, 8});
  layout.add(2, layout.queries() % 2 == 0 ? 1 : 2);
  ASSERT_EQ(layout.queries() % 2, 1);  // what stands behind D in the workspace has to be aligned even so
  compare_bf16(layout, {1, 1, 64});
}

TEST(AttentionCuda, PrefixBehindItsUsers) {
  const Layout layout = Layout().add(12, 12, 21, 51).add(9, 3, 21, 51).add(30, 0);
  compare_bf16(layout, {2, 1, 64});
  compare_f32(layout, {1, 1, 8});
  // A tile of rows that users fill: none is before the prefix's keys, though all their tokens are.
  compare_bf16(Layout().add(40, 40, 40, 104).add(64, 0), {1, 1, 64});
}

// 15 of the first 32 tokens are queries, 30 rows: the tile of 32 ends with the rows of the first query that sees
// key 32.
TEST(AttentionCuda, RowsBeforeAWarpsKeysEndInsideATile) {
  Layout layout;
  layout.tokens = 64;
  for (int token = 0; token < 64; ++token)
    if (token >= 32 || (token % 2 == 0 && token < 30)) layout.query_tokens.push_back(token);
  layout.segments.push_back({0, 64, 0, 0, 0, static_cast<int>(layout.queries())});
  compare_bf16(layout, {2, 1, 64});
}

TEST(AttentionCuda, PlainKernels) {
  for (const Heads& h : {Heads{2, 1, 8}, {3, 1, 5}, {1, 1, 32}}) compare_f32(ragged(), h);
  for (const Heads& h : {Heads{2, 2, 8}, {2, 1, 32}}) compare_bf16(ragged(), h);
  const Layout short_ones = Layout().add(9, 9).add(40, 40, 0, 9).add(30, 2, 0, 9);
  for (int head_dim : {64, 80, 1000}) compare_f32(short_ones, {2, 1, head_dim});
  compare_bf16(short_ones, {4, 2, 80});
}

TEST(AttentionCuda, EmptyBatches) {
  for (const Layout& layout : {Layout(), Layout().add(4, 0), Layout().add(0, 0).add(1, 1)}) {
    compare_f32(layout, {2, 1, 8});
    compare_bf16(layout, {2, 1, 64});
  }
}

template <class T>
void expect_clear_rows_of_no_segment(int64_t head_dim) {
  Layout layout = Layout().add(5, 5).add(90, 90).add(6, 6);
  layout.segments.erase(layout.segments.begin() + 1);
  GpuOp<T> run(random_reference<T>(layout, {2, 1, head_dim}, 5));
  run.forward().backward();
  const std::vector<T> o = run.o.download(), dq = run.dq.download(), dkv = run.dkv.download();
  for (int64_t i = 0; i < 101 * 2 * head_dim; ++i) {
    const bool outside = i >= 5 * 2 * head_dim && i < 95 * 2 * head_dim;
    ASSERT_EQ(std::isnan(static_cast<float>(o[i])), outside);
    ASSERT_FALSE(std::isnan(static_cast<float>(dq[i])) || std::isnan(static_cast<float>(dkv[i])));
    if (!outside) continue;
    ASSERT_EQ(static_cast<float>(dq[i]), 0);
    ASSERT_EQ(static_cast<float>(dkv[i]), 0);
  }
}
TEST(AttentionCuda, RowsOfNoSegment) {
  expect_clear_rows_of_no_segment<float>(8);
  expect_clear_rows_of_no_segment<bf16>(64);
  expect_clear_rows_of_no_segment<bf16>(128);
}

template <class T>
void expect_same_bits_again(const Heads& h) {
  const Reference<double> in = random_reference<T>(many_users(), h, 13);
  GpuOp<T> one(in), two(in);
  one.forward().backward();
  two.forward().backward();
  const auto same = [](const auto& a, const auto& b) {
    const auto x = a.download(), y = b.download();
    return std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0;
  };
  EXPECT_TRUE(same(one.o, two.o) && same(one.lse, two.lse) && same(one.dq, two.dq) && same(one.dkv, two.dkv));
}
TEST(AttentionCuda, SameBitsAgain) {
  expect_same_bits_again<float>({2, 1, 8});
  expect_same_bits_again<bf16>({2, 1, 64});
}

// Scores from −10,240 to 10,240, and always one key ahead of the others, early or late. lse is the score after
// `roundings`: of the constants log₂ e and ln 2 and the products with them, and, unless it is a power of 2, of the
// scale and the product with it.
void expect_one_key(int dim, int roundings) {
  SCOPED_TRACE(dim);
  constexpr int tokens = 100;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  Reference<double> in = random_reference<bf16>(Layout().add(tokens, tokens), {1, 1, dim}, 5);
  for (int token = 0; token < tokens; ++token)
    for (int c = 0; c < dim; ++c) {
      in.q[token * dim + c] = c == 0 ? 1024 : 0;
      const double first = token == 1 ? 0 : token == 20 ? 40 : token == 77 ? 80 : -80;
      in.kv[token * 2 * dim + c] = c == 0 ? first : 0;
    }
  GpuOp<bf16> run(in);
  run.forward().backward();
  const std::vector<bf16> o = run.o.download(), dq = run.dq.download();
  const std::vector<float> lse = run.lse.download();
  for (int token = 0; token < tokens; ++token) {
    const int best = token < 1 ? 0 : token < 20 ? 1 : token < 77 ? 20 : 77;
    const double score = 1024 * scale * in.kv[best * 2 * dim];
    EXPECT_NEAR(lse[token], score, roundings * f32_unit * std::abs(score));
    for (int c = 0; c < dim; ++c) {
      EXPECT_EQ(static_cast<float>(o[token * dim + c]), in.kv[best * 2 * dim + dim + c]);
      // dS is 0 but for the rounding of two sums of dim products.
      const double ds = 2 * dim * dim * f32_unit * max_abs(in.d_o) * max_abs(in.kv);
      EXPECT_NEAR(static_cast<float>(dq[token * dim + c]), 0, c == 0 ? ds * 80 * scale : 0);
    }
  }
}
TEST(AttentionCuda, ExtremeScoresPickOneKey) {
  expect_one_key(64, 4);
  expect_one_key(128, 6);
}

TEST(AttentionCuda, EqualScoresGiveTheMean) {
  Reference<double> in = random_reference<bf16>(Layout().add(4, 0).add(130, 130, 0, 4), {1, 1, 64}, 5);
  std::fill(in.q.begin(), in.q.end(), 0.0);
  GpuOp<bf16> run(in);
  run.forward();
  in.forward();
  EXPECT_LE(max_error(run.o.download(), in.o), 2 * max_error(plain_bf16_loop(in).o, in.o));
  const std::vector<float> lse = run.lse.download();
  for (int i = 0; i < 130; ++i) EXPECT_NEAR(lse[i], std::log(i + 5.0), 4e-6);
}

TEST(AttentionCuda, NanIsSeenAndStaysInItsSegment) {
  Reference<double> in = random_reference<bf16>(Layout().add(20, 20).add(20, 20), {1, 1, 64}, 5);
  in.q[22 * 64] = NAN;
  GpuOp<bf16> run(in);
  run.forward().backward();
  const std::vector<bf16> o = run.o.download(), dkv = run.dkv.download();
  EXPECT_TRUE(std::isnan(static_cast<float>(o[22 * 64])) && std::isnan(run.lse.download()[22]));
  for (int i = 0; i < 20 * 64; ++i) ASSERT_FALSE(std::isnan(static_cast<float>(o[i])));
  for (int i = 0; i < 20 * 128; ++i) ASSERT_FALSE(std::isnan(static_cast<float>(dkv[i])));
}

TEST(AttentionCuda, NeedsThePlansTablesOnTheDevice) {
  GpuOp<float> run(random_reference<float>(Layout().add(4, 4), {1, 1, 8}, 1));
  EXPECT_THROW(run.plan.set_device_tables(run.tables.tensor({3})), Error);
  run.plan.set(run.layout.segments, run.layout.query_tokens, run.layout.tokens);
  EXPECT_THROW(run.forward(), Error);
  EXPECT_THROW(run.backward(), Error);
}

// Work that the mask leaves nothing of is skipped: what the kernels multiply are the warps' tiles in which some row
// sees some key, and no others.

// The keys that a row of a query sees, in the order in which the kernels take them.
struct Sight {
  explicit Sight(const Layout& layout) : keys(layout.queries()) {
    for (const AttentionSegment& s : layout.segments)
      for (int query = s.query_begin; query < s.query_end; ++query) {
        for (int key = s.prefix_begin; key < s.prefix_end; ++key) keys[query].push_back(key);
        for (int key = s.begin; key <= layout.query_tokens[query]; ++key) keys[query].push_back(key);
      }
  }
  bool sees(int query, int key) const {
    return std::find(keys[query].begin(), keys[query].end(), key) != keys[query].end();
  }
  std::vector<std::vector<int>> keys;
};

// Tiles of a warp's 16 rows × `tile_keys` keys with a visible pair, of one kv head: each tile of queries has its
// queries × the heads of a kv head as rows, and a row sees the first so many keys of its segment.
int64_t visible_row_tiles(const Layout& layout, const Sight& sight, int group, int tile_keys) {
  int64_t tiles = 0;
  for (const AttentionSegment& s : layout.segments)
    for (int begin = s.query_begin; begin < s.query_end; begin += attention_detail::tile_size) {
      const int rows = (std::min(begin + attention_detail::tile_size, s.query_end) - begin) * group;
      for (int row = 0; row < rows; row += 16) {
        const int last = begin + (std::min(row + 16, rows) - 1) / group;
        tiles += (std::ssize(sight.keys[last]) + tile_keys - 1) / tile_keys;
      }
    }
  return tiles;
}

// Tiles of a warp's 16 keys × 32 rows with a visible pair, of one kv head, over the plan's items.
int64_t visible_key_tiles(AttentionPlan& plan, const Sight& sight, int group) {
  int64_t tiles = 0;
  const auto* tables = plan.tables().as<int32_t>();
  const auto* items = reinterpret_cast<const attention_detail::KeyItem*>(tables + plan.gpu().key_items);
  for (const auto& item : std::span(items, plan.gpu().key_item_count))
    for (int key = item.key_begin; key < item.key_end; key += 16)
      for (int row = 0; row < (item.list_end - item.list_begin) * group; row += 32) {
        bool visible = false;
        for (int at = item.list_begin + row / group;
             at < std::min(item.list_end, item.list_begin + (row + 31) / group + 1) && !visible; ++at)
          for (int k = key; k < std::min(key + 16, item.key_end) && !visible; ++k)
            visible = sight.sees(tables[plan.gpu().lists + at], k);
        tiles += visible;
      }
  return tiles;
}

void expect_only_visible_tiles(const Layout& layout, const Heads& h) {
  SCOPED_TRACE(
      fmt::format("{} tokens, {} heads, {} kv heads, head_dim {}", layout.tokens, h.heads, h.kv_heads, h.head_dim));
  GpuOp<bf16> run(random_reference<bf16>(layout, h, 5));
  softgpu_support::reset_counters();
  run.forward().backward();
  run.stream.synchronize();
  const Sight sight(layout);
  const int group = static_cast<int>(h.heads / h.kv_heads);
  // An mma is 16 × 8 × 16. Forward: S and P·V of 16 × 64; dq: S, dP and dS·K of 16 × 32; dk, dv: four of 16 × 32.
  const struct {
    const char* kernel;
    int64_t tiles, products;
  } kernels[] = {{"attention_forward_kernel", visible_row_tiles(layout, sight, group, 64), h.head_dim},
                 {"attention_dq_kernel", visible_row_tiles(layout, sight, group, 32), 3 * h.head_dim / 4},
                 {"attention_dkv_kernel", visible_key_tiles(run.plan, sight, group), h.head_dim}};
  for (const auto& k : kernels) {
    softgpu::Counters counted;
    ASSERT_TRUE(softgpu_support::counters(k.kernel, counted)) << k.kernel;
    EXPECT_EQ(static_cast<int64_t>(counted.mma), k.tiles * k.products * h.kv_heads) << k.kernel;
  }
}

TEST(AttentionCuda, MultipliesOnlyVisibleTiles) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  for (const Heads& h : {Heads{1, 1, 128}, {6, 2, 64}}) {
    expect_only_visible_tiles(Layout().add(640, 640), h);
    expect_only_visible_tiles(ragged(), h);
    expect_only_visible_tiles(Layout().add(30, 30).add(140, 140, 0, 30).add(111, 111, 0, 30).add(90, 3, 0, 30), h);
    expect_only_visible_tiles(many_users(), h);
  }
}

// What the main loops spend beside the tensor cores: a function of the PTX, which softgpu counts.
TEST(AttentionCuda, InstructionsForEachMma) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  GpuOp<bf16> run(random_reference<bf16>(Layout().add(640, 640), {1, 1, 128}, 5));
  softgpu_support::reset_counters();
  run.forward().backward();
  run.stream.synchronize();
  for (const auto& [kernel, limit] :
       {std::pair{"attention_forward_kernel", 3.0}, {"attention_dq_kernel", 4.0}, {"attention_dkv_kernel", 4.0}}) {
    softgpu::Counters counted;
    ASSERT_TRUE(softgpu_support::counters(kernel, counted)) << kernel;
    const double others = static_cast<double>(counted.loop_instructions - counted.loop_mma) / counted.loop_mma;
    fmt::print("{}: {:.2f} instructions beside each mma in the loop, {} bank conflicts there, {} in all\n", kernel,
               others, counted.loop_shared_conflicts, counted.shared_conflicts);
    EXPECT_LE(others, limit) << kernel;
    EXPECT_EQ(counted.shared_conflicts, 0) << kernel;
  }
}

}  // namespace
}  // namespace notellm

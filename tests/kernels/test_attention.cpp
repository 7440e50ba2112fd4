// Attention against a plain double loop, whose own gradient is proved by finite differences; hand-checked numbers;
// bf16 against a plain loop of the same precision; extreme scores; threads; shared prefixes; errors.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_detail.h"
#include "tests/kernels/attention_reference.h"

namespace notellm {
namespace {

using namespace test;

void compare_f32(const Layout& layout, const Heads& h) {
  SCOPED_TRACE(fmt::format("{} heads, {} kv heads, head_dim {}", h.heads, h.kv_heads, h.head_dim));
  Reference<double> expected = random_reference<float>(layout, h, 7);
  expected.forward();
  expected.backward();
  const Tolerance tolerance(expected);
  Op<float> run(expected);
  run.forward().backward();
  EXPECT_LE(max_error(run.lse, expected.lse), tolerance.lse);
  EXPECT_LE(max_error(run.o, expected.o), tolerance.o);
  EXPECT_LE(max_error(run.dq, expected.dq), tolerance.dq);
  EXPECT_LE(max_error(run.dkv, expected.dkv), tolerance.dkv);
}

TEST(Attention, TwoTokensByHand) {
  // head_dim 1: scale 1. Scores of token 1: 0·1 and ln 3·1 → p = 1/4, 3/4.
  Reference<double> in(Layout().add(2, 2), Heads{1, 1, 1});
  in.q = {5, 1};
  in.kv = {0, 8, std::log(3.0), 4};  // k0 v0 k1 v1
  in.d_o = {1, 1};
  Op<float> run(in);
  run.forward().backward();
  EXPECT_FLOAT_EQ(run.o[0], 8);
  EXPECT_FLOAT_EQ(run.o[1], 5);  // 8/4 + 4·3/4
  EXPECT_NEAR(run.lse[0], 0, 1e-6);
  EXPECT_FLOAT_EQ(run.lse[1], std::log(4.0f));
  // dS_1 = (1/4·(8 − 5), 3/4·(4 − 5)) = (3/4, −3/4); dS_0 = 0
  EXPECT_NEAR(run.dq[0], 0, 1e-6);
  EXPECT_NEAR(run.dq[1], -0.75 * std::log(3.0), 1e-6);
  EXPECT_NEAR(run.dkv[0], 0.75, 1e-6);   // dk0
  EXPECT_NEAR(run.dkv[1], 1.25, 1e-6);   // dv0 = 1 + 1/4
  EXPECT_NEAR(run.dkv[2], -0.75, 1e-6);  // dk1
  EXPECT_NEAR(run.dkv[3], 0.75, 1e-6);   // dv1
}

TEST(Attention, GradientOfTheReferenceIsItsFiniteDifference) {
  Layout layout;
  layout.add(3, 3).add(2, 2, 0, 3).add(3, 1, 0, 3);
  Reference<double> reference = random_reference<double>(layout, Heads{4, 2, 3}, 3);
  reference.forward();
  reference.backward();
  const auto loss = [&](const Reference<double>& at) {
    Reference<double> copy = at;
    copy.forward();
    double sum = 0;
    for (size_t i = 0; i < copy.o.size(); ++i) sum += copy.o[i] * copy.d_o[i];
    return sum;
  };
  const auto check = [&](std::vector<double> Reference<double>::*input, const std::vector<double>& gradient) {
    constexpr double step = 1e-5;  // error of the central difference about step² = 1e-10, plus 1e-16/step
    for (size_t i = 0; i < gradient.size(); ++i) {
      Reference<double> up = reference, down = reference;
      (up.*input)[i] += step;
      (down.*input)[i] -= step;
      EXPECT_NEAR((loss(up) - loss(down)) / (2 * step), gradient[i], 1e-8);
    }
  };
  check(&Reference<double>::q, reference.dq);
  check(&Reference<double>::kv, reference.dkv);
}

TEST(Attention, EqualsThePlainLoop) {
  for (const Heads& h : {Heads{2, 2, 8}, {3, 1, 32}, {2, 2, 48}, {4, 2, 64}, {1, 1, 128}, {2, 1, 5}})
    compare_f32(ragged(), h);
}

TEST(Attention, SegmentsLongerThanManyBlocks) {
  Layout layout;
  layout.add(70, 70).add(1100, 1100, 0, 70).add(600, 2, 0, 70);
  compare_f32(layout, Heads{1, 1, 16});
}

TEST(Attention, EmptyBatches) {
  compare_f32(Layout(), Heads{2, 1, 8});
  compare_f32(Layout().add(4, 0), Heads{2, 1, 8});
  compare_f32(Layout().add(0, 0).add(1, 1), Heads{2, 1, 8});
}

// bf16 may err twice as much as the plain loop that reads bf16, computes in f32 and rounds its results.
TEST(Attention, Bf16IsAsExactAsThePlainBf16Loop) {
  for (const Heads& h : {Heads{2, 2, 8}, {4, 2, 32}, {2, 1, 64}}) {
    Reference<double> expected = random_reference<bf16>(ragged(), h, 11);
    expected.forward();
    expected.backward();
    const Reference<float> plain = plain_loop<bf16>(expected);
    Op<bf16> run(expected);
    run.forward().backward();
    EXPECT_LE(max_error(run.o, expected.o), 2 * max_error(plain.o, expected.o));
    EXPECT_LE(max_error(run.lse, expected.lse), Tolerance(expected).lse);
    EXPECT_LE(max_error(run.dq, expected.dq), 2 * max_error(plain.dq, expected.dq));
    EXPECT_LE(max_error(run.dkv, expected.dkv), 2 * max_error(plain.dkv, expected.dkv));
  }
}

// Scores of exactly −10240, 0, 5120 and 10240, and always one key, early or late, ahead of the others: its weight is 1,
// theirs 0.
TEST(Attention, ExtremeScoresPickOneKey) {
  constexpr int tokens = 40, dim = 16;  // scale 1/4
  Reference<double> in = random_reference<float>(Layout().add(tokens, tokens), Heads{1, 1, dim}, 5);
  for (int token = 0; token < tokens; ++token)
    for (int c = 0; c < dim; ++c) {
      in.q[token * dim + c] = c == 0 ? 1024 : 0;
      const double first = token == 1 ? 0 : token == 20 ? 20 : token == 37 ? 40 : -40;
      in.kv[token * 2 * dim + c] = c == 0 ? first : 0;
    }
  double values = 0;  // the largest
  std::vector<double> dv(tokens * dim);
  Op<float> run(in);
  run.forward().backward();
  for (int token = 0; token < tokens; ++token) {
    const int best = token < 1 ? 0 : token < 20 ? 1 : token < 37 ? 20 : 37;
    EXPECT_EQ(run.lse[token], 256 * in.kv[best * 2 * dim]);
    for (int c = 0; c < dim; ++c) {
      EXPECT_EQ(run.o[token * dim + c], run.kv[best * 2 * dim + dim + c]);
      values = std::max(values, std::abs(in.kv[token * 2 * dim + dim + c]));
      dv[best * dim + c] += in.d_o[token * dim + c];
    }
  }
  // dS is 0 but for the rounding of two sums of dim products, each at most dim·|dO||v|.
  const double ds = 2 * dim * dim * f32_unit * max_abs(in.d_o) * values;
  for (int token = 0; token < tokens; ++token)
    for (int c = 0; c < dim; ++c) {
      EXPECT_NEAR(run.dq[token * dim + c], 0, c == 0 ? ds * 40 / 4 : 0);
      EXPECT_NEAR(run.dkv[token * 2 * dim + c], 0, c == 0 ? tokens * ds * 1024 / 4 : 0);
      EXPECT_NEAR(run.dkv[token * 2 * dim + dim + c], dv[token * dim + c],
                  tokens * f32_unit * tokens * max_abs(in.d_o));
    }
}

TEST(Attention, EqualScoresGiveTheMean) {
  Reference<double> in = random_reference<float>(Layout().add(4, 0).add(33, 33, 0, 4), Heads{1, 1, 8}, 5);
  std::fill(in.q.begin(), in.q.end(), 0.0);
  Op<float> run(in);
  run.forward();
  double sum[8] = {};
  for (int token = 0; token < 37; ++token)
    for (int c = 0; c < 8; ++c) {
      sum[c] += in.kv[token * 16 + 8 + c];
      if (token < 4) continue;
      EXPECT_NEAR(run.o[(token - 4) * 8 + c], sum[c] / (token + 1), 40 * f32_unit * max_abs(in.kv));
      EXPECT_NEAR(run.lse[token - 4], std::log(token + 1.0), 1e-6);
    }
}

TEST(Attention, NanIsSeenAndStaysInItsSegment) {
  Reference<double> in = random_reference<float>(Layout().add(20, 20).add(20, 20), Heads{1, 1, 8}, 5);
  in.q[22 * 8] = NAN;
  Op<float> run(in);
  run.forward().backward();
  EXPECT_TRUE(std::isnan(run.o[22 * 8]) && std::isnan(run.lse[22]) && std::isnan(run.dq[22 * 8]));
  for (int i = 0; i < 20 * 8; ++i) ASSERT_FALSE(std::isnan(run.o[i]) || std::isnan(run.dq[i]));
  for (int i = 0; i < 20 * 16; ++i) ASSERT_FALSE(std::isnan(run.dkv[i]));
}

template <class T>
void expect_same_bits_for_all_threads() {
  Layout layout;
  layout.add(25, 25).add(30, 30);
  for (int i = 0; i < 60; ++i) layout.add(20 + 7 * i % 50, 1 + i % 20, i % 3 ? 0 : 25, i % 3 ? 25 : 55);
  const Reference<double> in = random_reference<T>(layout, Heads{4, 2, 24}, 13);
  const int threads_before = omp_get_max_threads();
  omp_set_num_threads(1);
  Op<T> one(in);
  one.forward().backward();
  for (int threads : {2, 3, 5}) {
    omp_set_num_threads(threads);
    Op<T> many(in);
    ASSERT_EQ(many.workspace.size(), one.workspace.size());
    many.forward().backward();
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
    };
    EXPECT_TRUE(same(one.o, many.o) && same(one.lse, many.lse) && same(one.dq, many.dq) && same(one.dkv, many.dkv));
  }
  omp_set_num_threads(threads_before);
}
TEST(Attention, SameBitsForAnyNumberOfThreads) {
  expect_same_bits_for_all_threads<float>();
  expect_same_bits_for_all_threads<bf16>();
}

// A prefix that 40 segments share against its copies in each of them.
TEST(Attention, SharedPrefixEqualsCopies) {
  constexpr int prefix = 21, users = 40;
  const Heads h{2, 1, 32};
  Layout shared, copied;
  shared.add(prefix, prefix);
  copied.add(prefix, prefix);
  for (int i = 0; i < users; ++i) shared.add(10 + i, 10 + i, 0, prefix);
  for (int i = 0; i < users; ++i) copied.add(prefix + 10 + i, 10 + i);
  Reference<double> in = random_reference<float>(shared, h, 17), with_copies(copied, h);
  const size_t width = 2 * h.kv_heads * h.head_dim;
  std::vector<int64_t> shared_token;  // of each token of the copies
  for (size_t s = 0; s < copied.segments.size(); ++s)
    for (int j = 0; j < copied.segments[s].end - copied.segments[s].begin; ++j)
      shared_token.push_back(s == 0 || j < prefix ? j : shared.segments[s].begin + j - prefix);
  for (size_t t = 0; t < shared_token.size(); ++t)
    for (size_t c = 0; c < width; ++c) with_copies.kv[t * width + c] = in.kv[shared_token[t] * width + c];
  with_copies.q = in.q;
  with_copies.d_o = in.d_o;
  with_copies.forward();
  with_copies.backward();
  std::vector<double> sum(in.dkv.size());
  for (size_t t = 0; t < shared_token.size(); ++t)
    for (size_t c = 0; c < width; ++c) sum[shared_token[t] * width + c] += with_copies.dkv[t * width + c];
  in.forward();
  in.backward();
  const Tolerance tolerance(in);
  Op<float> run(in);
  run.forward().backward();
  EXPECT_LE(max_error(run.o, with_copies.o), tolerance.o);
  EXPECT_LE(max_error(run.dq, with_copies.dq), tolerance.dq);
  EXPECT_LE(max_error(run.dkv, sum), tolerance.dkv);
}

TEST(Attention, RowsOfNoSegment) {
  Layout layout = Layout().add(5, 5).add(7, 7).add(6, 6);
  layout.segments.erase(layout.segments.begin() + 1);
  Op<float> run(random_reference<float>(layout, Heads{1, 1, 8}, 5));
  run.forward();
  for (int i = 5 * 8; i < 12 * 8; ++i) EXPECT_TRUE(std::isnan(run.o[i]));
  std::fill(run.o.begin(), run.o.end(), 0.0f);
  run.forward().backward();
  for (int i = 5 * 8; i < 12 * 8; ++i) EXPECT_EQ(run.dq[i], 0);
  for (int i = 5 * 16; i < 12 * 16; ++i) EXPECT_EQ(run.dkv[i], 0);
  for (float x : run.dkv) EXPECT_FALSE(std::isnan(x));
}

struct AttentionErrors : testing::Test {
  Op<float> run{random_reference<float>(Layout().add(4, 4).add(6, 6, 0, 4), Heads{4, 2, 8}, 1)};
  Tensor q = run.query_tensor(run.q), kv = run.key_tensor(run.kv), o = run.query_tensor(run.o), lse = run.lse_tensor(),
         d_o = run.query_tensor(run.d_o), dq = run.query_tensor(run.dq), dkv = run.key_tensor(run.dkv),
         workspace = run.workspace_tensor();
  std::vector<AttentionSegment>& segments = run.layout.segments;
  void forward() { attention(run.stream, run.plan(), q, kv, o, lse); }
  void backward() { attention_backward(run.stream, run.plan(), d_o, q, kv, o, lse, dq, dkv, workspace); }
  // Both passes refuse a change of a shared argument; the change is taken back.
  template <class X>
  void refused(X& argument, const X& bad) {
    const X good = argument;
    argument = bad;
    EXPECT_THROW(forward(), Error);
    EXPECT_THROW(backward(), Error);
    argument = good;
    EXPECT_NO_THROW(forward());
    EXPECT_NO_THROW(backward());
  }
};

TEST_F(AttentionErrors, ShapesAndTypes) {
  refused(q, Tensor(q.data, DType::i32, {10, 4, 8}));
  refused(q, Tensor(q.data, DType::bf16, {10, 4, 8}));
  refused(q, Tensor(q.data, DType::f32, {10, 32}));
  refused(q, Tensor(q.data, DType::f32, {10, 8, 4}));
  refused(q, Tensor(q.data, DType::f32, {9, 4, 8}));
  refused(kv, Tensor(kv.data, DType::bf16, {10, 4, 8}));
  refused(kv, Tensor(kv.data, DType::f32, {10, 3, 8}));
  refused(kv, Tensor(kv.data, DType::f32, {10, 0, 8}));
  refused(kv, Tensor(kv.data, DType::f32, {9, 4, 8}));  // the plan has 10 tokens
  refused(o, Tensor(o.data, DType::bf16, {10, 4, 8}));
  refused(o, Tensor(o.data, DType::f32, {10, 4, 7}));
  refused(lse, Tensor(lse.data, DType::bf16, {10, 4}));
  refused(lse, Tensor(lse.data, DType::f32, {10, 3}));
  // 4 heads are no multiple of 3 kv heads.
  std::vector<float> more(10 * 6 * 8);
  refused(kv, Tensor::of(more.data(), {10, 6, 8}));
}

TEST_F(AttentionErrors, BackwardOnly) {
  const auto refuse = [&](Tensor& argument, Tensor bad) {
    const Tensor good = argument;
    argument = bad;
    EXPECT_THROW(backward(), Error);
    argument = good;
  };
  refuse(d_o, Tensor(d_o.data, DType::f32, {10, 4, 7}));
  refuse(d_o, Tensor(d_o.data, DType::bf16, {10, 4, 8}));
  refuse(dq, Tensor(dq.data, DType::f32, {9, 4, 8}));
  refuse(dq, Tensor(dq.data, DType::bf16, {10, 4, 8}));
  refuse(dkv, Tensor(dkv.data, DType::f32, {10, 2, 8}));
  refuse(dkv, Tensor(dkv.data, DType::bf16, {10, 4, 8}));
  refuse(workspace, Tensor(workspace.data, DType::f32, {workspace.size() - 1}));
  refuse(workspace, Tensor(workspace.data, DType::i32, {workspace.size()}));
}

TEST_F(AttentionErrors, Segments) {
  refused(segments[0].begin, -1);
  refused(segments[1].end, 11);
  refused(segments[1].end, 3);
  refused(segments[1].prefix_begin, -1);
  refused(segments[1].prefix_end, 11);
  refused(segments[1].prefix_begin, 5);
  refused(segments[0].query_begin, -1);
  refused(segments[1].query_end, 11);
  refused(segments[1].query_end, 3);
  refused(segments[1].begin, 3);           // a token of two segments
  refused(segments[1].query_begin, 3);     // a query of two segments, and outside its segment
  refused(run.layout.query_tokens[5], 4);  // not after the query before it
  refused(run.layout.query_tokens[9], 10);
  refused(run.layout.query_tokens[4], 3);
  EXPECT_THROW(attention_workspace(run.stream, run.plan(), q, Tensor(kv.data, DType::f32, {10, 3, 8})), Error);
}

}  // namespace
}  // namespace notellm

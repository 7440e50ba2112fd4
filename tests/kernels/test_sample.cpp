#include "kernels/sample.h"
#include "tests/kernels/sample_cases.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::view;

Stream stream;

TEST(Argmax, ByHand) {
  std::vector<float> logits{1, 5, 5, 9, /**/ -3, -2, -7, 9}, largest(2);
  std::vector<int32_t> token(2), offsets{0, 2, 3}, list{0, 2, 2};
  argmax(stream, view(logits, {2, 4}), {3, {}, {}}, view(token, {2}), view(largest, {2}));
  EXPECT_EQ(token, (std::vector<int32_t>{1, 1}));  // of equal ones the first; column 3 is padding
  EXPECT_EQ(largest, (std::vector<float>{5, -2}));
  argmax(stream, view(logits, {2, 4}), {3, view(offsets, {3}), view(list, {3})}, view(token, {2}), view(largest, {2}));
  EXPECT_EQ(token, (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(largest, (std::vector<float>{5, -7}));
}

TEST(Sample, ByHand) {
  // Weights 1/8, 1/2, 1/8, 1/4 of the whole, in the order of columns.
  std::vector<float> logits, uniform{0, 0.124f, 0.126f, 0.624f, 0.626f, 0.749f, 0.751f, 0.9999f};
  for (int r = 0; r < 8; ++r)
    for (double p : {0.125, 0.5, 0.125, 0.25}) logits.push_back(static_cast<float>(std::log(p)));
  std::vector<int32_t> token(8);
  const auto drawn = [&](Sampling sampling) {
    sample(stream, view(logits, {8, 4}), {4, {}, {}}, sampling, view(uniform, {8}), view(token, {8}));
    return token;
  };
  EXPECT_EQ(drawn({}), (std::vector<int32_t>{0, 0, 1, 1, 2, 2, 3, 3}));
  // Two thirds and a third.
  EXPECT_EQ(drawn({.top_k = 2}), (std::vector<int32_t>{1, 1, 1, 1, 1, 3, 3, 3}));
  EXPECT_EQ(drawn({.top_p = 0.7f}), (std::vector<int32_t>{1, 1, 1, 1, 1, 3, 3, 3}));
  EXPECT_EQ(drawn({.top_k = 3}), drawn({}));     // the third largest logit is there twice
  EXPECT_EQ(drawn({.top_p = 0.8f}), drawn({}));  // and so here
  EXPECT_EQ(drawn({.top_p = 0.49f}), (std::vector<int32_t>{1, 1, 1, 1, 1, 1, 1, 1}));
  // Weights 1, 16, 1, 4 of 22.
  EXPECT_EQ(drawn({.temperature = 0.5f}), (std::vector<int32_t>{0, 1, 1, 1, 1, 1, 1, 3}));
}

TEST(Sample, IsWhatAComputationInDoubleAllows) {
  for (const test::SampleCase& c : test::sample_cases()) {
    SCOPED_TRACE(c.name());
    const Tensor logits = Tensor::of(c.logits.data(), {c.rows, c.vocabulary});
    Candidates candidates{c.columns, {}, {}};
    if (c.lists) {
      candidates.offsets = Tensor::of(c.offsets.data(), {c.rows + 1});
      candidates.tokens = Tensor::of(c.tokens.data(), {std::ssize(c.tokens)});
    }
    test::expect_same_bits([&] {
      std::vector<int32_t> token(c.rows), drawn(c.rows);
      std::vector<float> largest(c.rows);
      argmax(stream, logits, candidates, view(token, {c.rows}), view(largest, {c.rows}));
      for (int64_t r = 0; r < c.rows; ++r) {
        EXPECT_EQ(token[r], c.expected_argmax(r));
        if (token[r] >= 0) {
          EXPECT_EQ(largest[r], c.logit(r, token[r]));
        }
      }
      std::string bytes = test::bytes_of(token);
      for (const Sampling& sampling : test::samplings())
        for (float u : {0.0f, 0.31f, 0.77f, 1 - 0x1p-24f}) {
          std::vector<float> uniform(c.rows, u);
          sample(stream, logits, candidates, sampling, view(uniform, {c.rows}), view(drawn, {c.rows}));
          for (int64_t r = 0; r < c.rows; ++r) test::expect_drawn(c, r, sampling, u, drawn[r]);
          bytes += test::bytes_of(drawn);
        }
      return bytes;
    });
  }
}

TEST(Sample, FrequenciesAreTheProbabilities) {
  const int64_t draws = 20000;
  const std::vector<double> p{0.1, 0.2, 0.3, 0.4};
  std::vector<float> logits, uniform;
  std::vector<int32_t> token(draws);
  std::mt19937 generator(1);
  for (int64_t r = 0; r < draws; ++r) {
    for (double x : p) logits.push_back(static_cast<float>(std::log(x) + 5));
    uniform.push_back(static_cast<float>(generator() >> 8) * 0x1p-24f);
  }
  sample(stream, view(logits, {draws, 4}), {4, {}, {}}, {}, view(uniform, {draws}), view(token, {draws}));
  std::array<double, 4> counts{};
  for (int32_t v : token) ++counts[v];
  for (int v = 0; v < 4; ++v)  // four standard deviations of a binomial count
    EXPECT_NEAR(counts[v], draws * p[v], 4 * std::sqrt(draws * p[v] * (1 - p[v]))) << v;
}

TEST(Sample, Errors) {
  std::vector<float> logits(8), f(2);
  std::vector<int32_t> token(2), offsets{0, 2, 3}, down{0, 2, 1}, late{1, 2, 3}, list{0, 2, 2}, outside{0, 4, 1};
  const Tensor l = view(logits, {2, 4}), t = view(token, {2}), u = view(f, {2}), o = view(offsets, {3}),
               c = view(list, {3});
  EXPECT_ERROR(internal, "5 columns may be chosen of 4", argmax(stream, l, {5, {}, {}}, t, u));
  EXPECT_ERROR(internal, "0 columns may be chosen of 4", argmax(stream, l, {0, {}, {}}, t, u));
  EXPECT_ERROR(internal, "token is", argmax(stream, l, {4, {}, {}}, t.slice(0, 1), u));
  EXPECT_ERROR(internal, "largest is", argmax(stream, l, {4, {}, {}}, t, u.slice(0, 1)));
  EXPECT_ERROR(internal, "offsets is", argmax(stream, l, {4, o.slice(0, 2), c}, t, u));
  EXPECT_ERROR(internal, "offset 2 of row 1, then 1", argmax(stream, l, {4, view(down, {3}), c}, t, u));
  EXPECT_ERROR(internal, "offsets from 1 to 3", argmax(stream, l, {4, view(late, {3}), c}, t, u));
  EXPECT_ERROR(internal, "candidate 4 of 4", sample(stream, l, {4, o, view(outside, {3})}, {}, u, t));
  EXPECT_ERROR(internal, "temperature 0", sample(stream, l, {4, {}, {}}, {.temperature = 0}, u, t));
  EXPECT_ERROR(internal, "top_k -1", sample(stream, l, {4, {}, {}}, {.top_k = -1}, u, t));
  EXPECT_ERROR(internal, "top_p 0", sample(stream, l, {4, {}, {}}, {.top_p = 0}, u, t));
  EXPECT_ERROR(internal, "top_p 1.5", sample(stream, l, {4, {}, {}}, {.top_p = 1.5f}, u, t));
  EXPECT_ERROR(internal, "uniform is", sample(stream, l, {4, {}, {}}, {}, u.slice(0, 1), t));
}

}  // namespace
}  // namespace notellm

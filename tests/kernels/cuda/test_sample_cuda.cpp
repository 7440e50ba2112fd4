// The next token on CUDA: the largest logit exactly, a drawn one as a computation in double allows.
#include "kernels/sample.h"
#include "tests/kernels/sample_cases.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::OnGpu;

// Equal zeros, neighbours among the numbers, a draw that falls on the border of two candidates.
TEST(CudaSample, ByHand) {
  Stream stream(Device::cuda);
  const auto drawn = [&](const std::vector<float>& logits, const Sampling& sampling, float u) {
    const auto n = std::ssize(logits);
    const OnGpu<float> x(stream, logits), uniform(stream, std::vector<float>{u});
    const OnGpu<int32_t> token(stream, std::vector<int32_t>(1));
    sample(stream, x.tensor({1, n}), {n, {}, {}}, sampling, uniform.tensor({1}), token.tensor({1}));
    return token.download()[0];
  };
  EXPECT_EQ(drawn({-0.0f, 0.0f, -1}, {.top_k = 1}, 0), 0);
  EXPECT_EQ(drawn({1, std::nextafter(1.0f, 2.0f), 1}, {.top_k = 1}, 0), 1);
  EXPECT_EQ(drawn({2, 2}, {}, 0.5f), 1);
  EXPECT_EQ(drawn({2, 2}, {}, 0.49f), 0);
  const OnGpu<float> x(stream, std::vector<float>{-1, -0.0f, 0, -2}), largest(stream, std::vector<float>(1));
  const OnGpu<int32_t> token(stream, std::vector<int32_t>(1));
  argmax(stream, x.tensor({1, 4}), {4, {}, {}}, token.tensor({1}), largest.tensor({1}));
  EXPECT_EQ(token.download()[0], 1);
}

TEST(CudaSample, IsWhatAComputationInDoubleAllows) {
  Stream stream(Device::cuda);
  for (const test::SampleCase& c : test::sample_cases()) {
    SCOPED_TRACE(c.name());
    const OnGpu<float> all(stream, c.logits), largest(stream, std::vector<float>(c.rows));
    const OnGpu<int32_t> token(stream, std::vector<int32_t>(c.rows)), offsets(stream, c.offsets),
        list(stream, c.tokens);
    const Tensor logits = all.tensor({c.rows, c.vocabulary});
    Candidates candidates{c.columns, {}, {}};
    if (c.lists) {
      candidates.offsets = offsets.tensor({c.rows + 1});
      candidates.tokens = list.tensor({std::ssize(c.tokens)});
    }
    argmax(stream, logits, candidates, token.tensor({c.rows}), largest.tensor({c.rows}));
    const std::vector<int32_t> best = token.download();
    const std::vector<float> values = largest.download();
    for (int64_t r = 0; r < c.rows; ++r) {
      EXPECT_EQ(best[r], c.expected_argmax(r));
      if (best[r] >= 0) {
        EXPECT_EQ(values[r], c.logit(r, best[r]));
      }
    }
    for (const Sampling& sampling : test::samplings())
      for (float u : {0.31f, 1 - 0x1p-24f}) {
        const OnGpu<float> uniform(stream, std::vector<float>(c.rows, u));
        sample(stream, logits, candidates, sampling, uniform.tensor({c.rows}), token.tensor({c.rows}));
        const std::vector<int32_t> drawn = token.download();
        for (int64_t r = 0; r < c.rows; ++r) test::expect_drawn(c, r, sampling, u, drawn[r]);
      }
  }
}

}  // namespace
}  // namespace notellm

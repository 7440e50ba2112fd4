// Ranks in a tile of scores on CUDA: exactly what a plain loop counts.
#include "kernels/rank_count.h"
#include "tests/kernels/rank_count_cases.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::OnGpu;

TEST(CudaRankCount, IsWhatAPlainLoopCounts) {
  Stream stream(Device::cuda);
  for (const test::RankCase& c : test::rank_cases()) {
    SCOPED_TRACE(c.name());
    const OnGpu<float> scores(stream, c.scores), prior(stream, c.prior), target(stream, c.target);
    const OnGpu<int32_t> rows(stream, c.rows), left_out(stream, c.left_out), counts(stream, c.before);
    rank_count(stream, scores.tensor({c.queries, c.width}), c.columns,
               c.with_prior ? prior.tensor({c.columns}) : Tensor(), c.first, rows.tensor({c.n()}),
               target.tensor({c.n()}), left_out.tensor({c.n(), 2}), counts.tensor({c.n(), 2}));
    EXPECT_EQ(counts.download(), c.expected());
    if (c.n() > c.width) continue;
    pick_scores(stream, scores.tensor({c.queries, c.width}), {}, rows.tensor({c.n()}), target.tensor({c.n()}));
    const std::vector<float> picked = target.download();
    for (int64_t i = 0; i < c.n(); ++i) {
      const float expected = c.scores[c.rows[i] * c.width + i];
      EXPECT_TRUE(picked[i] == expected || (std::isnan(picked[i]) && std::isnan(expected))) << i;
    }
  }
}

}  // namespace
}  // namespace notellm

// Ranks of targets over a pool on CUDA: those of the CPU, where every score is exact.
#include <gtest/gtest.h>

#include "evaluation/ranking.h"
#include "runtime/random.h"

namespace notellm {
namespace {

TEST(RankingCuda, IsTheCpus) {
  Communicator self = Communicator::self();
  Stream gpu(Device::cuda), cpu;
  constexpr int64_t d = 16;
  for (int64_t rows : {2, 1023, 1024, 2500}) {
    std::vector<float> pool(rows * d), prior(rows);  // small whole numbers: sums are exact, ties are many
    for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<float>(random_bits(1, i, 0) % 5) - 2;
    for (size_t i = 0; i < prior.size(); ++i) prior[i] = static_cast<float>(random_bits(2, i, 0) % 3);
    std::vector<Question> questions;
    for (int64_t i = 0; i < 700; ++i) {
      const auto query = static_cast<int32_t>(random_bits(3, i, 0) % std::min<int64_t>(rows, 300));
      const auto target = static_cast<int32_t>(random_bits(4, i, 0) % rows);
      if (query != target) questions.push_back({query, target});
    }
    const Tensor vectors = Tensor::of(pool.data(), {rows, d});
    for (const std::span<const float> added : {std::span<const float>(), std::span<const float>(prior)}) {
      const auto found = rank_targets(gpu, self, vectors, questions, added),
                 expected = rank_targets(cpu, self, vectors, questions, added);
      ASSERT_EQ(found.size(), expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].better, expected[i].better) << rows << " rows, question " << i;
        ASSERT_EQ(found[i].ties, expected[i].ties) << rows << " rows, question " << i;
      }
    }
  }
}

// Copies of one vector have the same score wherever they stand.
TEST(RankingCuda, EqualVectorsTieWhereverTheyStand) {
  Communicator self = Communicator::self();
  Stream gpu(Device::cuda);
  constexpr int64_t rows = 1500, d = 24;
  std::vector<float> pool(rows * d);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < d; ++c) pool[r * d + c] = static_cast<float>(random_unit(5, r % 3, c));
  const auto ranks =
      rank_targets(gpu, self, Tensor::of(pool.data(), {rows, d}), std::vector<Question>{{0, 1}, {0, 1499}});
  EXPECT_EQ(ranks[0].ties, 499);
  EXPECT_EQ(ranks[1].ties, 499);
}

}  // namespace
}  // namespace notellm

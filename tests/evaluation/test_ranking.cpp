#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "evaluation/ranking.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace notellm {
namespace {

void expect_equal(const std::vector<Rank>& ranks, const std::vector<Rank>& expected) {
  ASSERT_EQ(ranks.size(), expected.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    EXPECT_EQ(ranks[i].better, expected[i].better) << "question " << i;
    EXPECT_EQ(ranks[i].ties, expected[i].ties) << "question " << i;
  }
}

std::vector<Rank> rank_on_world(const std::vector<float>& pool, int64_t rows, const std::vector<Question>& questions,
                                std::span<const float> prior = {}) {
  Stream stream;
  Communicator world = Communicator::world();
  const int64_t d = static_cast<int64_t>(pool.size()) / rows;
  return rank_targets(stream, world, Tensor::of(pool.data(), {rows, d}), questions, prior);
}

// The plain way: score everything, sort, look where the target's score begins and ends.
std::vector<Rank> rank_by_sorting(const std::vector<float>& pool, int64_t rows, const std::vector<Question>& questions,
                                  std::span<const float> prior = {}) {
  const int64_t d = static_cast<int64_t>(pool.size()) / rows;
  std::vector<Rank> ranks;
  for (const Question& q : questions) {
    std::vector<double> others;
    double target = 0;
    for (int64_t x = 0; x < rows; ++x) {
      double score = prior.empty() ? 0.0 : prior[x];
      for (int64_t k = 0; k < d; ++k) score += static_cast<double>(pool[q.query * d + k]) * pool[x * d + k];
      if (x == q.target) target = score;
      if (x != q.query && x != q.target) others.push_back(score);
    }
    std::sort(others.begin(), others.end(), std::greater<>());
    const auto [first, last] = std::equal_range(others.begin(), others.end(), target, std::greater<>());
    ranks.push_back({static_cast<int32_t>(first - others.begin()), static_cast<int32_t>(last - first)});
  }
  return ranks;
}

// Small whole numbers: every sum is exact in f32, and ties are many.
std::vector<float> whole_numbers(uint64_t seed, int64_t count, int span) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(random_bits(seed, i, 0) % span) - span / 2;
  return values;
}

std::vector<Question> random_questions(uint64_t seed, int64_t pool, int64_t count, int64_t queries) {
  std::vector<Question> questions;
  for (int64_t i = 0; i < count; ++i) {
    const auto query = static_cast<int32_t>(random_bits(seed, i, 1) % std::min(pool, queries));
    auto target = static_cast<int32_t>(random_bits(seed, i, 2) % (pool - 1));
    target += target >= query;
    questions.push_back({query, target});
  }
  return questions;
}

TEST(RankTargets, HandCase) {
  // Scores of query 0: itself 5, note 1: 2, note 2: 4, note 3: 4, note 4: -2.
  const std::vector<float> pool = {2, 1, /**/ 1, 0, /**/ 2, 0, /**/ 1, 2, /**/ 0, -2};
  expect_equal(rank_on_world(pool, 5, {{0, 1}, {0, 2}, {0, 3}, {0, 4}}), {{2, 0}, {0, 1}, {0, 1}, {3, 0}});
  const std::vector<float> prior = {0, 2.5, 0, 0, 6};  // … 4.5, 4, 4, 4
  expect_equal(rank_on_world(pool, 5, {{0, 1}, {0, 2}, {0, 4}}, prior), {{0, 0}, {1, 2}, {1, 2}});
  EXPECT_TRUE(rank_on_world(pool, 5, {}).empty());
}

TEST(RankTargets, IsWhatSortingGives) {
  for (const int64_t rows : {2, 3, 50, 1023, 1024, 1025, 2500})
    for (const int64_t d : {1, 7, 32}) {
      const std::vector<float> pool = whole_numbers(rows + d, rows * d, 7), prior = whole_numbers(d, rows, 5);
      const std::vector<Question> questions = random_questions(rows, rows, 700, 400);  // more than one block of queries
      expect_equal(rank_on_world(pool, rows, questions), rank_by_sorting(pool, rows, questions));
      expect_equal(rank_on_world(pool, rows, questions, prior), rank_by_sorting(pool, rows, questions, prior));
      if (HasFailure()) FAIL() << "pool of " << rows << ", d = " << d;
    }
}

TEST(RankTargets, ManyTargetsOfOneQueryFillMoreThanATile) {
  const std::vector<float> pool = whole_numbers(1, 1500 * 8, 9);
  std::vector<Question> questions;
  for (int32_t target = 0; target < 1500; ++target)
    if (target != 700) questions.push_back({700, target});
  expect_equal(rank_on_world(pool, 1500, questions), rank_by_sorting(pool, 1500, questions));
}

// Every vector stands in the pool three times, at random places: the copies must tie, to the bit.
TEST(RankTargets, EqualVectorsTieWhereverTheyStand) {
  const int64_t rows = 3000, d = 96;
  std::vector<float> pool(rows * d);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t original = static_cast<int64_t>(permute(9, rows, row)) % (rows / 3);
    for (int64_t k = 0; k < d; ++k) pool[row * d + k] = static_cast<float>(random_unit(4, original, k) - 0.5);
  }
  const std::vector<Question> questions = random_questions(5, rows, 2000, rows);
  const std::vector<Rank> ranks = rank_on_world(pool, rows, questions);
  const auto original = [&](int32_t row) { return static_cast<int64_t>(permute(9, rows, row)) % (rows / 3); };
  for (size_t i = 0; i < questions.size(); ++i) {
    const bool copy = original(questions[i].query) == original(questions[i].target);
    EXPECT_EQ(ranks[i].ties, copy ? 1 : 2) << i;
  }
}

TEST(RankTargets, BrokenVectorsRankLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> pool = whole_numbers(2, 10 * 4, 5);
  pool[3 * 4] = nan;
  const std::vector<Rank> ranks = rank_on_world(pool, 10, {{0, 3}, {3, 0}});
  expect_equal(ranks, {{8, 0}, {8, 0}});
  EXPECT_EQ(rank_on_world(std::vector<float>(40, nan), 10, {{0, 1}})[0].better, 8);
}

TEST(RankTargets, RefusesWhatDoesNotFit) {
  const std::vector<float> pool(12, 1.0f), prior(5, 0.0f);
  EXPECT_THROW(rank_on_world(pool, 6, {{0, 6}}), Error);
  EXPECT_THROW(rank_on_world(pool, 6, {{-1, 2}}), Error);
  EXPECT_THROW(rank_on_world(pool, 6, {{2, 2}}), Error);
  EXPECT_THROW(rank_on_world(pool, 6, {{0, 1}}, prior), Error);
  Stream stream;
  Communicator self = Communicator::self();
  const std::vector<int32_t> whole(12, 1);
  EXPECT_THROW(rank_targets(stream, self, Tensor::of(whole.data(), {6, 2}), {}), Error);
}

TEST(RankInRow, LeavesOutQueryAndTarget) {
  const std::vector<float> scores = {9, 1, 5, 5, 5, 7};
  expect_equal({rank_in_row(scores, {0, 2}), rank_in_row(scores, {3, 2}), rank_in_row(scores, {0, 1})},
               {{1, 2}, {2, 1}, {4, 0}});
}

TEST(Summarize, RecallAndReciprocalRank) {
  const std::vector<Rank> ranks = {{0, 0}, {9, 0}, {10, 0}, {8, 3}, {99, 1}};
  const RankingMetrics all = summarize(ranks);
  EXPECT_EQ(all.count, 5);
  EXPECT_DOUBLE_EQ(all.recall[0], (1 + 1 + 0 + 0.5 + 0) / 5);  // places 9 … 12: two of four are among ten
  EXPECT_DOUBLE_EQ(all.recall[1], (1 + 1 + 1 + 1 + 0.5) / 5);
  EXPECT_DOUBLE_EQ(all.recall[2], 1);
  EXPECT_DOUBLE_EQ(all.recall[3], 1);
  const double tied = (1.0 / 9 + 1.0 / 10 + 1.0 / 11 + 1.0 / 12) / 4, last = (1.0 / 100 + 1.0 / 101) / 2;
  EXPECT_NEAR(all.mrr, (1 + 0.1 + 1.0 / 11 + tied + last) / 5, 1e-14);

  const RankingMetrics some = summarize(ranks, std::vector<uint8_t>{0, 1, 1, 0, 0});
  EXPECT_EQ(some.count, 2);
  EXPECT_DOUBLE_EQ(some.recall[0], 0.5);

  const RankingMetrics none = summarize(ranks, std::vector<uint8_t>(5, 0));
  EXPECT_EQ(none.count, 0);
  EXPECT_TRUE(std::isnan(none.mrr) && std::isnan(none.recall[0]));
  EXPECT_EQ(summarize({}).count, 0);
  EXPECT_THROW(summarize(ranks, std::vector<uint8_t>(4, 1)), Error);
}

// A method that scores all notes alike has the recall of guessing: k of the P - 1 places.
TEST(Summarize, ConstantScoresAreGuessing) {
  const int64_t rows = 501;
  const std::vector<float> pool(rows * 2, 1.0f);
  const RankingMetrics metrics = summarize(rank_on_world(pool, rows, {{0, 1}, {4, 2}}));
  EXPECT_DOUBLE_EQ(metrics.recall[0], 10.0 / 500);
  EXPECT_DOUBLE_EQ(metrics.recall[1], 100.0 / 500);
}

TEST(Pool, KeepsTheTablesOrder) {
  NoteTable notes;
  notes.ids = {"a", "b", "c", "d"};
  notes.in_pool = {0, 1, 0, 1};
  const Pool pool = make_pool(notes);
  EXPECT_EQ(pool.notes, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(pool.row_of, (std::vector<int32_t>{-1, 0, -1, 1}));
  const std::vector<Pair> pairs = {{3, 1, 1.0f}};
  const std::vector<Question> questions = make_questions(pool, pairs);
  EXPECT_EQ(questions[0].query, 1);
  EXPECT_EQ(questions[0].target, 0);
  EXPECT_THROW(make_questions(pool, std::vector<Pair>{{3, 2, 1.0f}}), Error);
  EXPECT_THROW(make_questions(pool, std::vector<Pair>{{3, 4, 1.0f}}), Error);
}

}  // namespace
}  // namespace notellm

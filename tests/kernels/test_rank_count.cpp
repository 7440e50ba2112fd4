#include "kernels/rank_count.h"
#include "tests/kernels/rank_count_cases.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::view;

Stream stream;

TEST(RankCount, ByHand) {
  // Items 10 to 13. The target of both questions is item 12; item 10 is the query of the first.
  std::vector<float> scores{9, 5, 3, 3, /**/ 1, 2, 4, std::nanf("")}, target{3, 4}, prior{0, 0, 0, 2};
  std::vector<int32_t> rows{0, 1}, left_out{10, 12, 7, 12}, counts{100, 200, 0, 0};
  const auto count = [&](Tensor prior) {
    rank_count(stream, view(scores, {2, 4}), 4, prior, 10, view(rows, {2}), view(target, {2}), view(left_out, {2, 2}),
               view(counts, {2, 2}));
  };
  count({});
  EXPECT_EQ(counts, (std::vector<int32_t>{101, 201, 1, 0}));  // 5 above, 3 level; NaN counts as above
  count(view(prior, {4}));
  EXPECT_EQ(counts, (std::vector<int32_t>{103, 201, 2, 0}));  // … and item 13 at 5
}

TEST(RankCount, PicksTheTargetsScores) {
  std::vector<float> scores{1, 2, 3, /**/ 4, 5, 6}, prior{10, 20}, target(2);
  std::vector<int32_t> rows{1, 0};
  pick_scores(stream, view(scores, {2, 3}), {}, view(rows, {2}), view(target, {2}));
  EXPECT_EQ(target, (std::vector<float>{4, 2}));
  pick_scores(stream, view(scores, {2, 3}), view(prior, {2}), view(rows, {2}), view(target, {2}));
  EXPECT_EQ(target, (std::vector<float>{14, 22}));
}

TEST(RankCount, IsWhatAPlainLoopCounts) {
  for (const test::RankCase& c : test::rank_cases()) {
    SCOPED_TRACE(c.name());
    test::expect_same_bits([&] {
      std::vector<int32_t> counts = c.before;
      rank_count(stream, c.scores_tensor(), c.columns, c.prior_tensor(), c.first, Tensor::of(c.rows.data(), {c.n()}),
                 Tensor::of(c.target.data(), {c.n()}), Tensor::of(c.left_out.data(), {c.n(), 2}),
                 view(counts, {c.n(), 2}));
      EXPECT_EQ(counts, c.expected());
      return test::bytes_of(counts);
    });
  }
}

TEST(RankCount, Errors) {
  std::vector<float> scores(6), target(2), prior(2);
  std::vector<int32_t> rows{0, 2}, left_out(4), counts(4);
  const Tensor s = view(scores, {2, 3}), r = view(rows, {2}), t = view(target, {2}), l = view(left_out, {2, 2}),
               c = view(counts, {2, 2});
  EXPECT_ERROR(internal, "row 2 of question 1", rank_count(stream, s, 3, {}, 0, r, t, l, c));
  EXPECT_ERROR(internal, "row 2 of question 1", pick_scores(stream, s, {}, r, t));
  EXPECT_ERROR(internal, "4 of 3 columns", rank_count(stream, s, 4, {}, 0, r, t, l, c));
  EXPECT_ERROR(internal, "prior is", rank_count(stream, s, 3, view(prior, {2}), 0, r, t, l, c));
  EXPECT_ERROR(internal, "target is", rank_count(stream, s, 3, {}, 0, r, t.slice(0, 1), l, c));
  EXPECT_ERROR(internal, "left_out is", rank_count(stream, s, 3, {}, 0, r, t, view(left_out, {4}), c));
  EXPECT_ERROR(internal, "counts is", rank_count(stream, s, 3, {}, 0, r, t, l, view(counts, {4})));
  EXPECT_ERROR(internal, "2 questions, 1 columns", pick_scores(stream, view(scores, {6, 1}), {}, r, t));
}

}  // namespace
}  // namespace notellm

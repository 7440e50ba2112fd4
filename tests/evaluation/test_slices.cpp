#include <gtest/gtest.h>

#include "evaluation/slices.h"

namespace notellm {
namespace {

using Mask = std::vector<uint8_t>;

struct Fixture {
  NoteTable notes;
  std::vector<Pair> train = {{1, 2, 1}, {2, 3, 1}}, test = {{1, 2, 1}, {2, 1, 1}, {0, 3, 1}, {3, 0, 1}, {2, 3, 1}};
  Fixture() {
    notes.ids = {"a", "b", "c", "d"};
    notes.clicks = {0, 5, 2, 9};
  }
};

TEST(Slices, HandCase) {
  const Fixture f;
  const std::vector<Slice> slices = make_slices(f.notes, f.train, f.test, 5);
  ASSERT_EQ(slices.size(), 6u);
  EXPECT_EQ(slices[0].name, "all");
  EXPECT_EQ(slices[0].mask, (Mask{1, 1, 1, 1, 1}));
  EXPECT_EQ(slices[1].name, "seen");
  EXPECT_EQ(slices[1].mask, (Mask{1, 0, 0, 0, 1}));  // the order counts: 1→2 is known, 2→1 is not
  EXPECT_EQ(slices[2].name, "unseen");
  EXPECT_EQ(slices[2].mask, (Mask{0, 1, 1, 1, 0}));
  EXPECT_EQ(slices[3].name, "cold");
  EXPECT_EQ(slices[3].mask, (Mask{0, 0, 1, 1, 0}));
  EXPECT_EQ(slices[4].name, "low exposure (< 5 clicks)");
  EXPECT_EQ(slices[4].mask, (Mask{1, 0, 0, 1, 0}));  // targets' clicks: 2 5 9 0 9
  EXPECT_EQ(slices[5].name, "high exposure (≥ 5 clicks)");
  EXPECT_EQ(slices[5].mask, (Mask{0, 1, 1, 0, 1}));
}

TEST(Slices, DefaultBoundIsTheMedianOfTheTargets) {
  const Fixture f;
  EXPECT_EQ(make_slices(f.notes, f.train, f.test, 0)[4].name, "low exposure (< 5 clicks)");  // 0 2 5 9 9
  const std::vector<Slice> none = make_slices(f.notes, f.train, {}, 0);
  for (const Slice& slice : none) EXPECT_TRUE(slice.mask.empty());
}

}  // namespace
}  // namespace notellm

// Whom the watchdog blames.
#include <gtest/gtest.h>

#include "runtime/watchdog.h"

namespace notellm {
namespace {

constexpr int64_t second = 1'000'000'000, now = 100 * second, stale = 5 * second;

void set(RankState& s, int rank, bool inside, const std::string& collective, double for_seconds, double silent = 0) {
  s.rank = rank;
  s.inside = inside;
  s.step = 7;
  s.since = now - static_cast<int64_t>(for_seconds * second);
  s.alive = now - static_cast<int64_t>(silent * second);
  for (size_t i = 0; i < collective.size(); ++i) s.collective[i] = collective[i];
}

class Watchdog : public testing::Test {
 protected:
  std::array<RankState, 3> states_;
  void SetUp() override {
    for (int r = 0; r < 3; ++r) set(states_[r], 4 + r, true, "collective 'a' of all ranks", 60);
  }
  std::string verdict() { return judge(states_, 0, now, stale); }
};

TEST_F(Watchdog, BlamesTheRankThatIsInNoCollective) {
  set(states_[1], 5, false, "collective 'b' of data group 0", 62);
  EXPECT_EQ(verdict(),
            "rank 5 did not come to collective 'a' of all ranks: in no collective for 62.0 s, after collective 'b' of "
            "data group 0 in step 7");
}

// Rank 6 waits for rank 5 in another group.
TEST_F(Watchdog, BlamesItBeforeThoseThatWaitElsewhere) {
  set(states_[2], 6, true, "collective 'b' of tensor group 1", 61);
  EXPECT_EQ(
      verdict(),
      "ranks wait for each other in step 7: ranks 4, 5 in collective 'a' of all ranks, rank 6 in collective 'b' of "
      "tensor group 1");
  set(states_[1], 5, false, "collective 'a' of all ranks", 62);
  EXPECT_EQ(verdict().substr(0, 19), "rank 5 did not come");
}

TEST_F(Watchdog, BlamesTheRankThatDoesNotRunWhereverItStands) {
  set(states_[1], 5, false, "collective 'b' of data group 0", 62);
  set(states_[2], 6, true, "collective 'a' of all ranks", 60, 59);
  EXPECT_EQ(verdict(), "rank 6 does not run: no sign of life for 59.0 s, in collective 'a' of all ranks in step 7");
  states_[2].alive = 0;  // has no watchdog yet
  EXPECT_EQ(verdict().substr(0, 19), "rank 5 did not come");
}

TEST_F(Watchdog, BlamesNobodyWhereAllWait) {
  EXPECT_EQ(verdict(), "all ranks wait in collective 'a' of all ranks in step 7: their messages do not arrive");
}

TEST_F(Watchdog, NamesAllThatAreMissing) {
  for (int r : {1, 2}) set(states_[r], 4 + r, false, "collective 'c' of all ranks", 62);
  EXPECT_EQ(verdict(),
            "ranks 5, 6 did not come to collective 'a' of all ranks: in no collective for 62.0 s, after collective 'c' "
            "of all "
            "ranks in step 7");
}

}  // namespace
}  // namespace notellm

// Ranks that do not come, that end early or that throw end all ranks: seen from outside, in child runs under mpirun.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/error.h"

namespace notellm {
namespace {

struct Outcome {
  int exit_code;
  std::string output;
  std::string last, end;  // line of the program; line of all
  double seconds;
};

// Processes of FAILING_RANKS that are there, in whatever state.
int running() {
  FILE* pipe = popen("pgrep -c -f ^" FAILING_RANKS, "r");
  int count = -1;
  if (fscanf(pipe, "%d", &count) != 1) count = -1;
  pclose(pipe);
  return count;
}

Outcome run(int ranks, const std::string& way, bool shared_memory = true) {
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // of Open MPI's plugins, in a build with sanitizers
  setenv("NOTELLM_SHARED_MEMORY", shared_memory ? "1" : "0", 1);
  const std::string mpirun = fmt::format("{} --oversubscribe --bind-to none -n {} ", FAILING_RANKS_MPIRUN, ranks);
  const auto start = std::chrono::steady_clock::now();
  FILE* pipe = popen(((ranks > 0 ? mpirun : "") + FAILING_RANKS " " + way + " 2>&1").c_str(), "r");
  Outcome outcome;
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe)) {
    const std::string line = buffer.data();
    outcome.output += line;
    outcome.last = line.starts_with("notellm: ") || line.starts_with("error: ") ? line : outcome.last;
    outcome.end = line;
  }
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (int i = 0; i < 100 && running() != 0; ++i) usleep(50'000);  // what is killed needs a moment to go
  EXPECT_EQ(running(), 0) << way;
  return outcome;
}

bool says(const Outcome& outcome, const std::string& text) { return outcome.output.find(text) != std::string::npos; }

TEST(FailingRanks, TheWatchdogNamesTheRankThatDoesNotCome) {
  const Outcome outcome = run(3, "absent");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
  for (int rank : {0, 2})
    EXPECT_TRUE(says(outcome, fmt::format("rank {}: collective 'loss' of all ranks has not ended after 1.", rank)))
        << outcome.output;
  EXPECT_TRUE(says(outcome, " s in step 17")) << outcome.output;
  EXPECT_FALSE(says(outcome, "rank 1: collective")) << outcome.output;
  EXPECT_NE(outcome.last.find("rank 1 did not come to collective 'loss' of all ranks: in no collective for"),
            std::string::npos)
      << outcome.output;
  EXPECT_NE(outcome.last.find("after collective 'tensor group' of all ranks in step 17"), std::string::npos)
      << outcome.output;
}

TEST(FailingRanks, AStoppedRankIsNamedAndEnded) {
  for (bool shared_memory : {true, false}) {
    const Outcome outcome = run(3, "stopped", shared_memory);
    EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
    EXPECT_LT(outcome.seconds, 30);
    EXPECT_NE(outcome.last.find("rank 1 does not run: no sign of life for"), std::string::npos) << outcome.output;
    EXPECT_EQ(outcome.last, outcome.end);
    EXPECT_FALSE(says(outcome, "went on")) << outcome.output;  // when mpirun continues rank 1 in order to end it
  }
}

TEST(FailingRanks, ARankThatComesBeforeTheVerdictEndsNobody) {
  const Outcome outcome = run(3, "late");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_TRUE(says(outcome, "collective 'loss' of all ranks has not ended after 1.")) << outcome.output;
  EXPECT_TRUE(says(outcome, "collective 'loss' of all ranks has ended after all")) << outcome.output;
  EXPECT_TRUE(says(outcome, "went on")) << outcome.output;
}

// Each waits for 2.4 s, of which it runs for 0.8; the watchdog's limit is 2.
TEST(FailingRanks, TimeInWhichAllWereStoppedIsNoWaiting) {
  const Outcome outcome = run(3, "suspended");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_FALSE(says(outcome, "has not ended")) << outcome.output;
  EXPECT_TRUE(says(outcome, "went on")) << outcome.output;
}

TEST(FailingRanks, AKilledRankEndsAll) {
  const Outcome outcome = run(3, "killed");
  EXPECT_EQ(outcome.exit_code, 137) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
  EXPECT_NE(outcome.last.find("rank 1 was killed, or crashed, after collective 'tensor group' of all ranks in step 17"),
            std::string::npos)
      << outcome.output;
}

TEST(FailingRanks, RanksInDifferentCollectivesAreBothNamedAtOnce) {
  const Outcome outcome = run(2, "names");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_TRUE(
      says(outcome, "collective 'loss' of all ranks, but rank 1 came with collective 'gradient' of all ranks") ||
      says(outcome, "collective 'gradient' of all ranks, but rank 0 came with collective 'loss' of all ranks"))
      << outcome.output;
}

// Where data goes by messages, and where groups differ, nothing arrives that could be compared.
TEST(FailingRanks, RanksThatWaitInDifferentCollectivesAreBothNamed) {
  for (bool shared_memory : {true, false}) {
    const Outcome outcome = run(2, "barrier", shared_memory);
    EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
    EXPECT_TRUE(says(outcome, "rank 0: collective 'loss' of all ranks has not ended")) << outcome.output;
    EXPECT_TRUE(says(outcome, "rank 1: collective 'gradient' of all ranks has not ended")) << outcome.output;
  }
  const Outcome outcome = run(4, "groups");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_TRUE(says(outcome, "rank 0: collective 'rows' of tensor group 0 has not ended")) << outcome.output;
  EXPECT_TRUE(says(outcome, "rank 1: collective 'gradient' of data group 1 has not ended")) << outcome.output;
  EXPECT_NE(outcome.last.find("ranks wait for each other in step 17: rank 1 in collective 'gradient' of data group 1, "
                              "ranks 2, 3 in collective 'loss' of all ranks, rank 0 in collective 'rows' of tensor"),
            std::string::npos)
      << outcome.output;
}

TEST(FailingRanks, AbortEndsAllRanksWithItsCode) {
  const Outcome outcome = run(2, "abort");
  EXPECT_EQ(outcome.exit_code, 42) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
}

TEST(FailingRanks, AnErrorOnOneRankEndsAllRanks) {
  const Outcome outcome = run(2, "throw");
  EXPECT_EQ(outcome.exit_code, 3) << outcome.output;
  EXPECT_EQ(outcome.end, "error: a bad note on rank 1\n") << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
}

TEST(FailingRanks, WithoutFailureAllEndWell) {
  EXPECT_EQ(run(2, "fine").exit_code, 0);
  EXPECT_EQ(run(0, "fine").exit_code, 0);  // without mpirun
}

}  // namespace
}  // namespace notellm

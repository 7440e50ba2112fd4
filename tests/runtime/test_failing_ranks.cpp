// Ranks that do not come, that end early or that throw end all ranks: seen from outside, in child runs under mpirun.
#include <gtest/gtest.h>
#include <sys/wait.h>

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
  double seconds;
};

Outcome run(int ranks, const std::string& way) {
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // of Open MPI's plugins, in a build with sanitizers
  const std::string mpirun = fmt::format("{} --oversubscribe --bind-to none -n {} ", FAILING_RANKS_MPIRUN, ranks);
  const auto start = std::chrono::steady_clock::now();
  FILE* pipe = popen(((ranks > 0 ? mpirun : "") + FAILING_RANKS " " + way + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) output.append(buffer.data(), got);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output,
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
}

bool says(const Outcome& outcome, const std::string& text) { return outcome.output.find(text) != std::string::npos; }

TEST(FailingRanks, TheWatchdogEndsARunWhoseOneRankNeverComes) {
  const Outcome outcome = run(3, "absent");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
  EXPECT_TRUE(says(outcome, "rank 0: collective loss has not ended after 1.")) << outcome.output;
  EXPECT_TRUE(says(outcome, "rank 2: collective loss has not ended after 1.")) << outcome.output;
  EXPECT_TRUE(says(outcome, " s in step 17")) << outcome.output;
  EXPECT_FALSE(says(outcome, "rank 1: collective")) << outcome.output;
}

TEST(FailingRanks, RanksInDifferentCollectivesAreBothNamed) {
  const Outcome outcome = run(2, "names");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_TRUE(says(outcome, "rank 0: collective loss has not ended")) << outcome.output;
  EXPECT_TRUE(says(outcome, "rank 1: collective gradient has not ended")) << outcome.output;
}

TEST(FailingRanks, AbortEndsAllRanksWithItsCode) {
  const Outcome outcome = run(2, "abort");
  EXPECT_EQ(outcome.exit_code, 42) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
}

TEST(FailingRanks, AnErrorOnOneRankEndsAllRanks) {
  const Outcome outcome = run(2, "throw");
  EXPECT_EQ(outcome.exit_code, 3) << outcome.output;
  EXPECT_TRUE(says(outcome, "a bad note on rank 1")) << outcome.output;
  EXPECT_LT(outcome.seconds, 30);
}

TEST(FailingRanks, WithoutFailureAllEndWell) {
  EXPECT_EQ(run(2, "fine").exit_code, 0);
  EXPECT_EQ(run(0, "fine").exit_code, 0);  // without mpirun
}

}  // namespace
}  // namespace notellm

#include <gtest/gtest.h>

#include <fstream>
#include <optional>
#include <thread>

#include "runtime/stopwatch.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "training/run_lock.h"

namespace notellm {
namespace {

TEST(RunLock, OneAtATime) {
  const test::TempDir folder;
  std::optional<RunLock> first(folder / "a/run");
  EXPECT_ERROR(usage, "another training writes to", RunLock(folder / "a/run", 0));
  EXPECT_ERROR(usage, "--set train.run=", RunLock(folder / "a/run", 0.2));
  const RunLock elsewhere(folder / "a/other", 0);
  first.reset();
  const RunLock second(folder / "a/run", 0);
  EXPECT_ERROR(usage, "another training writes to", RunLock(folder / "a/run", 0));
}

TEST(RunLock, LeavesNoFolderOfARunThatNeverBegan) {
  const test::TempDir folder;
  { const RunLock lock(folder / "run"); }
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));
  {
    const RunLock lock(folder / "run");
    std::ofstream(folder / "run" / "metrics.jsonl") << "{}";
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "run" / "metrics.jsonl"));
  EXPECT_TRUE(std::filesystem::exists(folder / "run" / "lock"));
}

TEST(RunLock, WaitsForOneThatEnds) {
  const test::TempDir folder;
  std::optional<RunLock> first(folder / "run");
  std::thread end([&first] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    first.reset();
  });
  const Stopwatch watch;
  const RunLock second(folder / "run");
  EXPECT_GE(watch.seconds(), 0.3);
  end.join();
}

TEST(RunLock, AFolderThatCannotBeWritten) { EXPECT_ERROR(io, "cannot write /dev/null/lock", RunLock("/dev/null")); }

}  // namespace
}  // namespace notellm

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "runtime/file_lock.h"
#include "runtime/stopwatch.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

constexpr const char* busy = "another one writes";

TEST(FileLock, OneAtATime) {
  const test::TempDir folder;
  std::optional<FileLock> first(std::in_place, folder / "a/run/lock", busy, "train.run", 0);
  EXPECT_ERROR(usage, "another one writes (it holds", FileLock(folder / "a/run/lock", busy, "train.run", 0));
  EXPECT_ERROR(usage,
               "choose another folder with --set train.run=", FileLock(folder / "a/run/lock", busy, "train.run", 0.2));
  const FileLock elsewhere(folder / "a/other/lock", busy, "train.run", 0);
  first.reset();
  const FileLock second(folder / "a/run/lock", busy, "train.run", 0);
  EXPECT_ERROR(usage, busy, FileLock(folder / "a/run/lock", busy, "train.run", 0));
}

TEST(FileLock, LeavesNothingThatItMade) {
  const test::TempDir folder;
  { const FileLock lock(folder / "run/lock", busy, "train.run", 0); }
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));
  std::filesystem::create_directory(folder / "run");
  { const FileLock lock(folder / "run/lock", busy, "train.run", 0); }
  EXPECT_TRUE(std::filesystem::is_empty(folder / "run"));
  {
    const FileLock lock(folder / "new/lock", busy, "train.run", 0);
    std::ofstream(folder / "new" / "metrics.jsonl") << "{}";
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "new" / "metrics.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(folder / "new" / "lock"));
}

TEST(FileLock, WaitsForOneThatEnds) {
  const test::TempDir folder;
  std::optional<FileLock> first(std::in_place, folder / "lock", busy, "train.run", 0);
  std::thread end([&first] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    first.reset();
  });
  const Stopwatch watch;
  const FileLock second(folder / "lock", busy, "train.run", 60);
  EXPECT_GE(watch.seconds(), 0.3);
  end.join();
}

// The file goes and comes while others wait for it.
TEST(FileLock, ManyTakeTurns) {
  const test::TempDir folder;
  std::atomic<int> inside = 0, most = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      for (int turn = 0; turn < 5; ++turn) {
        const FileLock lock(folder / "lock", busy, "train.run", 60);
        most = std::max<int>(most, ++inside);
        std::this_thread::yield();
        --inside;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

TEST(FileLock, AFileThatCannotBeMade) {
  EXPECT_ERROR(io, "cannot write /dev/null/lock", FileLock("/dev/null/lock", busy, "train.run", 0));
}

}  // namespace
}  // namespace notellm

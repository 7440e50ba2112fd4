// Collectives beside the main thread's: what is begun is done in order, the caller does not wait, errors come back.
#include <gtest/gtest.h>

#include <chrono>
#include <vector>

#include "runtime/side_collectives.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using Clock = std::chrono::steady_clock;

TEST(SideCollectives, WorkIsDoneInOrderAndSums) {
  Communicator world = Communicator::world();
  SideCollectives side(Device::cpu, world);
  EXPECT_EQ(side.beside(), world.size() > 1 && !world.on_shared_memory());
  Stream stream;
  std::vector<float> x(100000, static_cast<float>(world.rank() + 1));
  std::vector<int> order;
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(side.begin(stream,
                         [&, i](Stream& s, Communicator& group) {
                           group.all_reduce_sum(s, "side", Tensor::of(x.data(), {std::ssize(x)}));
                           order.push_back(i);
                         }),
              i + 1);
  // Meanwhile the group itself is free.
  EXPECT_EQ(world.max("main", int64_t{world.rank()}), world.size() - 1);
  side.wait(stream, "side", 0);
  side.wait(stream, "side", 5);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
  float expected = 0;
  for (int r = 0; r < world.size(); ++r) expected += static_cast<float>(r + 1);
  for (int i = 1; i < 5; ++i) expected *= static_cast<float>(world.size());
  for (float v : x) ASSERT_EQ(v, expected);
}

TEST(SideCollectives, NobodyWaitsForARankThatIsLate) {
  Communicator world = Communicator::world();
  SideCollectives side(Device::cpu, world);
  if (!side.beside()) GTEST_SKIP() << "one rank, or ranks that share memory";
  Stream stream;
  const auto work = [](Stream&, Communicator& group) { group.barrier("side"); };
  world.barrier("start");
  const bool late = world.rank() == world.size() - 1;
  if (late) std::this_thread::sleep_for(std::chrono::milliseconds(400));
  const auto start = Clock::now();
  const int64_t number = side.begin(stream, work);
  const auto begun = Clock::now() - start;
  side.wait(stream, "side", number);
  const auto done = Clock::now() - start;
  EXPECT_LT(begun, std::chrono::milliseconds(100));
  if (!late) {
    EXPECT_GT(done, std::chrono::milliseconds(200));
  }
}

TEST(SideCollectives, AnErrorComesBackToWhoeverWaits) {
  Communicator world = Communicator::world();
  SideCollectives side(Device::cpu, world);
  Stream stream;
  const auto fails = [](Stream&, Communicator&) { fail(ErrorKind::data, "a seeded error"); };
  if (side.beside()) {
    const int64_t number = side.begin(stream, fails);
    EXPECT_ERROR(data, "a seeded error", side.wait(stream, "side", number));
    EXPECT_ERROR(data, "a seeded error", side.begin(stream, fails));
  } else {
    EXPECT_ERROR(data, "a seeded error", side.begin(stream, fails));
  }
}

// The other ranks never come.
TEST(SideCollectives, WhatIsUnderWayIsGivenUpWhileAnErrorPasses) {
  Communicator world = Communicator::world();
  if (world.size() == 1 || world.on_shared_memory()) GTEST_SKIP() << "one rank, or ranks that share memory";
  std::vector<float> x(1000);
  const auto start = Clock::now();
  try {
    SideCollectives side(Device::cpu, world);
    Stream stream;
    if (world.rank() == 0) {
      side.begin(stream, [&](Stream& s, Communicator& group) {
        group.all_reduce_sum(s, "side", Tensor::of(x.data(), {std::ssize(x)}));
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    throw std::runtime_error("the main thread fails");
  } catch (const std::runtime_error&) {
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace notellm

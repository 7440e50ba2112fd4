// The grid of ranks, and what it costs where it does not fit the hosts.
#include <gtest/gtest.h>

#include "runtime/mesh.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

TEST(Mesh, NeighboursAreATensorGroup) {
  Communicator world = Communicator::world();
  for (int tensor = 1; tensor <= world.size(); ++tensor) {
    if (world.size() % tensor != 0) {
      const int above = (world.size() / tensor + 1) * tensor;
      EXPECT_ERROR(usage, fmt::format("start {} or {} ranks", above - tensor, above), Mesh(world, tensor));
      continue;
    }
    Mesh mesh(world, tensor);
    EXPECT_EQ(world.rank(), mesh.data.rank() * tensor + mesh.tensor.rank());
    EXPECT_EQ(mesh.tensor.size(), tensor);
  }
  EXPECT_ERROR(usage, fmt::format("start {} ranks", world.size() + 1), Mesh(world, world.size() + 1));
}

TEST(Mesh, CostOfHosts) {
  EXPECT_EQ(bytes_to_other_hosts(900, 1, 1), 0);
  EXPECT_EQ(bytes_to_other_hosts(900, 4, 4), 0);
  EXPECT_EQ(bytes_to_other_hosts(900, 4, 2), 600);  // to two of three
  EXPECT_EQ(bytes_to_other_hosts(900, 4, 1), 900);
  const std::string text = describe_hosts_cost(12'340'000, 4);
  for (const char* part : {"different hosts", "12.3 MB a step", "a multiple of 4 ranks on every host"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace
}  // namespace notellm

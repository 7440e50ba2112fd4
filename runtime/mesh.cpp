#include "runtime/mesh.h"

namespace notellm {

void check_mesh(int ranks, int tensor) {
  const int below = ranks / tensor * tensor, above = below + tensor;
  if (ranks != below)
    fail(ErrorKind::usage,
         "{} ranks do not divide into tensor groups of parallel.tensor {}: start {}{} ranks, or set it to a divisor",
         ranks, tensor, below == 0 ? "" : fmt::format("{} or ", below), above);
}

namespace {

int checked(const Communicator& world, int tensor) {
  check_mesh(world.size(), tensor);
  return tensor;
}

}  // namespace

Mesh::Mesh(Communicator& world, int tensor)
    : world(world),
      data(world.split("data group", world.rank() % checked(world, tensor))),
      tensor(world.split("tensor group", world.rank() / tensor)) {}

int64_t bytes_to_other_hosts(int64_t bytes_sent, int ranks, int here) {
  return ranks == 1 ? 0 : bytes_sent / (ranks - 1) * (ranks - here);
}

std::string describe_hosts_cost(int64_t bytes, int tensor) {
  return fmt::format(
      "the ranks of a tensor group are on different hosts: each sends {:.1f} MB a step over the network; start a "
      "multiple "
      "of {} ranks on every host (ranks of a host are neighbours), or lower parallel.tensor",
      static_cast<double>(bytes) / 1e6, tensor);
}

}  // namespace notellm

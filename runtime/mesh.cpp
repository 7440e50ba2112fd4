#include "runtime/mesh.h"

namespace notellm {

void check_mesh(int ranks, int tensor) {
  if (ranks % tensor != 0)
    fail(
        ErrorKind::usage,
        "{} ranks do not divide into tensor groups of parallel.tensor {}: start {} or {} ranks, or set it to a divisor",
        ranks, tensor, std::max(1, ranks / tensor) * tensor, (ranks / tensor + 1) * tensor);
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

}  // namespace notellm

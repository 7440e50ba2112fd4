#include "runtime/mesh.h"

namespace notellm {
namespace {

int checked(const Communicator& world, int tensor) {
  if (world.size() % tensor != 0)
    fail(
        ErrorKind::usage,
        "{} ranks do not divide into tensor groups of parallel.tensor {}: start {} or {} ranks, or set it to a divisor",
        world.size(), tensor, std::max(1, world.size() / tensor) * tensor, (world.size() / tensor + 1) * tensor);
  return tensor;
}

}  // namespace

Mesh::Mesh(Communicator& world, int tensor)
    : world(world),
      data(world.split("data group", world.rank() % checked(world, tensor))),
      tensor(world.split("tensor group", world.rank() / tensor)) {}

}  // namespace notellm

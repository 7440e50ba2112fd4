// One main for every test, alone or under mpirun: the process is a rank of the world communicator all along.
#include <gtest/gtest.h>

#include "runtime/communicator.h"

int main(int argc, char** argv) {
  notellm::Communicator world = notellm::Communicator::world();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

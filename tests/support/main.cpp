// One main for every test, alone or under mpirun: the process is a rank of the world communicator all along.
#include <gtest/gtest.h>

#include "runtime/communicator.h"

#ifdef __SANITIZE_ADDRESS__
// OpenMPI's plugins stay loaded, so that LeakSanitizer can name them (tests/support/lsan.supp).
extern "C" int dlclose(void*) { return 0; }
#endif

int main(int argc, char** argv) {
  notellm::Communicator world = notellm::Communicator::world();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

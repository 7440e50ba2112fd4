// A program that fails in the way its argument says, for test_failing_ranks.
#include <cstdio>
#include <string>
#include <thread>

#include "runtime/communicator.h"

using namespace notellm;

namespace {
void stay_away() { std::this_thread::sleep_for(std::chrono::minutes(2)); }

void run(Communicator& comm, const std::string& way) {
  set_watchdog(1);
  set_watchdog_step(17);
  comm.barrier("first");
  if (way == "absent" && comm.rank() == 1) stay_away();
  if (way == "abort" && comm.rank() == 1) Communicator::abort(42);
  if (way == "throw" && comm.rank() == 1) fail(ErrorKind::data, "a bad note on rank {}", comm.rank());
  if (way == "fine") return;
  set_watchdog(way == "absent" || way == "names" ? 1 : 60);
  if (way == "names" && comm.rank() == 1) comm.all_gather("gradient", 1);
  comm.all_gather("loss", 1);
}
}  // namespace

int main(int, char** argv) {
  try {
    Communicator comm = Communicator::world();
    run(comm, argv[1]);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    Communicator::abort(static_cast<int>(error.kind()));
  }
}

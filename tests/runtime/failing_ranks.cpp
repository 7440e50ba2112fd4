// A program that fails in the way its argument says, for test_failing_ranks.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <thread>

#include "runtime/communicator.h"

using namespace notellm;

namespace {
void sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

void stay_away() { sleep(120); }

// From another process: this one is stopped in 0.4 s and goes on 1.6 s later.
void be_stopped_for_a_while() {
  if (fork() != 0) return;
  sleep(0.4);
  kill(getppid(), SIGSTOP);
  sleep(1.6);
  kill(getppid(), SIGCONT);
  _exit(0);
}

void run(Communicator& comm, const std::string& way) {
  const bool waits = way == "absent" || way == "names" || way == "groups" || way == "stopped" || way == "barrier";
  std::signal(SIGTERM, SIG_IGN);  // as in training, where it asks for a checkpoint
  set_watchdog(waits || way == "late" ? 1 : way == "suspended" ? 2 : 60);
  set_watchdog_step(17);
  comm.barrier("first");
  Communicator data = comm.split("data group", comm.rank() % 2), tensor = comm.split("tensor group", comm.rank() / 2);
  if (way == "fine") return;
  if (way == "suspended") be_stopped_for_a_while();
  if (comm.rank() == 1) {
    if (way == "late") sleep(1.5);
    if (way == "suspended") sleep(2.4);
    if (way == "absent") stay_away();
    if (way == "stopped") raise(SIGSTOP);
    if (way == "killed") raise(SIGKILL);
    if (way == "abort") Communicator::abort(42);
    if (way == "throw") fail(ErrorKind::data, "a bad note on rank {}", comm.rank());
    if (way == "names") comm.all_gather("gradient", 1);
    if (way == "barrier") comm.barrier("gradient");
    if (way == "groups") data.all_gather("gradient", 1);
  }
  if (way == "groups") tensor.all_gather("rows", 1);
  comm.all_gather("loss", 1);
  comm.barrier("last");
  std::fputs("went on\n", stderr);
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

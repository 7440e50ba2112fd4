// Host code that dereferences a device address: a segmentation fault, told as what it is.
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "tests/softgpu/memory.h"

namespace softgpu {
namespace {

// Not safe in a signal handler by the letter, but the process is at its end, and outside softgpu when it faults.
void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uint64_t>(info->si_addr);
  if (!is_device_address(address)) {
    signal(SIGSEGV, SIG_DFL);  // the access is made again, and ends the process as usual
    return;
  }
  Allocation found;
  Place place;
  place.kernel = "host code";
  report(FindingKind::out_of_bounds, place,
         find_allocation(address, found)
             ? "the host touches byte " + std::to_string(address - found.begin) + " of device memory (" + found.what +
                   " of " + std::to_string(found.end - found.begin) + " bytes)"
             : "the host touches device memory that is not allocated");
  _exit(99);
}

__attribute__((constructor)) void register_handler() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace
}  // namespace softgpu

// A program that uses the GPU in the way its argument says, for test_failing_gpu.
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/memory.h"

using namespace notellm;

namespace {

void run(Communicator& ranks, const std::string& way) {
  choose_device(Device::cuda, ranks.local_rank(), ranks.local_size());
  Stream stream(Device::cuda);
  if (way == "memory") {
    const Buffer parameters(24 << 20, Memory::device, "parameters"), moments(16 << 20, Memory::device, "moments");
    const Arena arena(40 << 20, Memory::device);
  }
  const Buffer buffer(1 << 10, Memory::device);
  const Tensor t = buffer.tensor(DType::f32, {256});
  set_zero(stream, t);
  for (const char* name : {"first", "second", "third"}) {
    if (way == "absent" && ranks.rank() == 1 && name[0] == 't') std::this_thread::sleep_for(std::chrono::minutes(2));
    ranks.all_reduce_sum(stream, name, t);
    stream.synchronize();
    if (way == "absent") set_watchdog(1);
  }
  std::printf("done\n");
}

}  // namespace

int main(int, char** argv) {
  Communicator ranks = Communicator::world();
  try {
    run(ranks, argv[1]);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    Communicator::abort(static_cast<int>(error.kind()));
  }
}

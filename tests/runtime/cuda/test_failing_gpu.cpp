// GPUs that are missing, too old, too few, full, or whose collectives fail: seen from outside, in child runs on
// softgpu.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/error.h"

namespace notellm {
namespace {

struct Outcome {
  int exit_code;
  std::string output;
};

Outcome run(int ranks, const std::string& way, const std::string& environment) {
  const std::string mpirun =
      ranks > 1 ? fmt::format("{} --oversubscribe --bind-to none -n {} ", FAILING_GPU_MPIRUN, ranks) : "";
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  FILE* pipe = popen((environment + " " + mpirun + FAILING_GPU + " " + way + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) output.append(buffer.data(), got);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

void expect(const Outcome& outcome, int exit_code, const std::string& text) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.output;
  EXPECT_NE(outcome.output.find(text), std::string::npos) << outcome.output;
}

TEST(FailingGpu, WithoutFailureAllEndWell) {
  expect(run(1, "fine", ""), 0, "done");
  expect(run(2, "fine", ""), 0, "done");
}

TEST(FailingGpu, NoDriver) { expect(run(1, "fine", "SOFTGPU_DRIVER=0"), 8, "this machine has no NVIDIA driver"); }

TEST(FailingGpu, ADriverThatIsTooOld) {
  expect(run(1, "fine", "SOFTGPU_DRIVER=12020"), 8,
         "the NVIDIA driver supports CUDA 12.2, this notellm was built with");
}

TEST(FailingGpu, AGpuThatIsTooOld) {
  expect(run(1, "fine", "SOFTGPU_ARCH=75"), 8, "GPU 0 is sm_75; notellm needs sm_80");
}

TEST(FailingGpu, FewerGpusThanRanks) {
  expect(run(2, "fine", "SOFTGPU_DEVICES=1"), 8, "2 ranks on this host, but 1 GPUs");
}

TEST(FailingGpu, MemoryThatRunsOutIsListedByWhatHoldsIt) {
  const Outcome outcome = run(1, "memory", "SOFTGPU_MEMORY_MB=64");
  expect(outcome, 8, "no room for activations and workspace of 40 MiB");
  expect(outcome, 8, "moments 16 MiB, parameters 24 MiB");
  expect(outcome, 8, "train.micro_batch_pairs");
}

TEST(FailingGpu, ACollectiveThatFailsEndsAllRanksWithItsName) {
  const Outcome outcome = run(2, "fine", "SOFTGPU_NCCL_FAIL=2");
  EXPECT_EQ(outcome.exit_code, 6) << outcome.output;
  EXPECT_NE(outcome.output.find("collective 'second' of all ranks failed in NCCL"), std::string::npos) << outcome.output;
}

TEST(FailingGpu, TheWatchdogSeesACollectiveThatDoesNotEnd) {
  expect(run(2, "absent", ""), 6, "rank 0: collective 'third' of all ranks has not ended after 1.");
}

}  // namespace
}  // namespace notellm

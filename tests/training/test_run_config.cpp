// What only the configuration as a whole can tell. Files, keys and types: tests/runtime/test_config.cpp.
#include <gtest/gtest.h>

#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "training/config.h"

namespace notellm {
namespace {

RunConfig read(const std::vector<std::string>& overrides) {
  const test::TempDir folder;
  write_file(folder / "run.yaml", "seed: 1\n");
  return read_run_config((folder / "run.yaml").string(), overrides);
}

TEST(RunConfig, AttentionByCudnnNeedsWhatCudnnNeeds) {
  const std::vector<std::string> all = {"attention=cudnn", "device=cuda", "precision=bf16", "train.share_prefix=false"};
  EXPECT_EQ(read(all).attention, AttentionKernels::cudnn);
  const auto without = [&](size_t i) {
    std::vector<std::string> rest = all;
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
    return rest;
  };
  EXPECT_ERROR(usage, "device: cuda", read(without(1)));
  EXPECT_ERROR(usage, "precision: bf16", read(without(2)));
  EXPECT_ERROR(usage, "train.share_prefix: false", read(without(3)));
}

}  // namespace
}  // namespace notellm

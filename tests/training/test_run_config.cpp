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

// The sizes are the checkpoint's; what is given must agree. What the checkpoint's own configuration names as its
// beginning may be gone.
TEST(RunConfig, ModelFromACheckpoint) {
  const test::TempDir folder;
  RunConfig before;
  before.model.dim = 48;
  before.model.heads = 4;
  before.model.kv_heads = 2;
  before.model.qkv_bias = true;
  before.model.init.tau = 1;
  before.model.from = "gone";
  before.model.finish();
  std::filesystem::create_directory(folder / "checkpoint");
  write_file(folder / "checkpoint/config.yaml", print_run_config(before));
  write_file(folder / "checkpoint/manifest.json", "");
  const std::string from = "model.from=" + (folder / "checkpoint").string();
  const ModelConfig m = read({from, "model.init.tau=2"}).model;
  EXPECT_EQ(m.dim, 48);
  EXPECT_EQ(m.head_dim, 12);
  EXPECT_TRUE(m.qkv_bias);
  EXPECT_EQ(m.init.tau, 2);
  EXPECT_EQ(m.from, (folder / "checkpoint").string());
  EXPECT_EQ(read({from, "model.dim=48", "model.head_dim=0"}).model.head_dim, 12);
  EXPECT_ERROR(usage, "model.dim is 192, but " + (folder / "checkpoint").string() + " has 48",
               read({from, "model.dim=192"}));
  EXPECT_ERROR(usage, "model.rope_scaling.type is llama3, but", read({from, "model.rope_scaling.type=llama3"}));
  EXPECT_ERROR(usage, "model.note_dim is 64, but", read({from, "model.note_dim=64"}));
  EXPECT_ERROR(io, "is neither a checkpoint nor a run", read({"model.from=" + (folder / "nothing").string()}));
}

TEST(RunConfig, RotaryFactorsInOrder) {
  EXPECT_ERROR(usage, "model.rope_scaling.low_frequency_factor 4 must be less than",
               read({"model.rope_scaling.type=llama3", "model.rope_scaling.low_frequency_factor=4"}));
}

}  // namespace
}  // namespace notellm

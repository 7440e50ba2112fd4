// Checkpoints: what comes back is what was saved, and damage of any kind is found and named.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"
#include "training/checkpoint.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// A run in a private folder, with a model and moments of random numbers.
class Checkpoint : public testing::Test {
 protected:
  test::TempDir folder_;
  RunConfig config_ = make_config(folder_);
  test::TinyData data_ = test::tiny_data(4);
  ParameterLayout layout_{config_.model, padded_vocabulary(40)};
  ShardMap shards_{layout_};
  Optimizer optimizer_{config_.optimizer, layout_, shards_};

  Checkpoint() {
    write_file(folder_ / "tokenizer.model", "the tokenizer's bytes");
    std::mt19937 random(1);
    for (const Tensor& t : {optimizer_.weights(), optimizer_.first_moment(), optimizer_.second_moment()})
      for (const Parameter& p : layout_.all())
        for (float& x : p.view(t).span<float>()) x = std::normal_distribution<float>()(random);
  }
  static RunConfig make_config(const test::TempDir& folder) {
    RunConfig c;
    c.seed = 77;
    c.model = test::tiny_model_config();
    c.model.tied_head = false;
    c.train.run = folder / "run";
    c.train.keep_checkpoints = 3;
    return c;
  }
  fs::path checkpoints() const { return folder_ / "run" / "checkpoints"; }
  fs::path at_step(int64_t step) const { return checkpoints() / fmt::format("step-{:08}", step); }
  void save(int64_t step) {
    save_checkpoint(config_, layout_, data_.notes, folder_ / "tokenizer.model", {step, step - 1, 1}, optimizer_);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(checkpoints())) found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }
};

using CheckpointDamage = Checkpoint;

bool same(Tensor a, Tensor b) { return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0; }

TEST_F(Checkpoint, WhatComesBackIsWhatWasSaved) {
  save(12);
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(12));
  const CheckpointInfo info = verify_checkpoint(at_step(12));
  EXPECT_EQ(info.path, at_step(12));
  EXPECT_EQ(info.position.step, 12);
  EXPECT_EQ(info.position.updates, 11);
  EXPECT_EQ(info.position.skipped, 1);
  EXPECT_EQ(info.vocabulary, 64);
  EXPECT_EQ(info.tokens_in_use, 40);
  EXPECT_EQ(info.tokenizer_digest, "tiny");
  EXPECT_EQ(print_run_config(info.config), print_run_config(config_));
  EXPECT_EQ(read_file(at_step(12) / "tokenizer.model"), "the tokenizer's bytes");

  Optimizer loaded(config_.optimizer, layout_, shards_);
  load_state(at_step(12), layout_, shards_, loaded);
  EXPECT_TRUE(same(loaded.weights(), optimizer_.weights()));
  EXPECT_TRUE(same(loaded.first_moment(), optimizer_.first_moment()));
  EXPECT_TRUE(same(loaded.second_moment(), optimizer_.second_moment()));
}

// Without the note head its weights are left alone: a plain Hugging Face folder has none.
TEST_F(Checkpoint, WeightsWithoutTheNoteHead) {
  save(1);
  fs::remove(at_step(1) / "note_head.safetensors");
  fs::rename(at_step(1) / "model-00001-of-00001.safetensors", at_step(1) / "model.safetensors");
  test::FlatWeights loaded(layout_);
  load_weights(at_step(1), layout_, false, loaded.flat);
  for (const Parameter& p : layout_.all()) {
    if (p.name.starts_with("note_head.")) {
      EXPECT_EQ(*p.view(loaded.flat).as<float>(), 0.0f) << p.name;
    } else {
      EXPECT_TRUE(same(p.view(loaded.flat), p.view(optimizer_.weights()))) << p.name;
    }
  }
  EXPECT_ERROR(io, "note_head.safetensors", load_weights(at_step(1), layout_, true, loaded.flat));
}

// What transformers' LlamaForCausalLM expects to find.
TEST_F(Checkpoint, ModelFileAndConfigAreOfHuggingFace) {
  save(3);
  const SafetensorsFile file(at_step(3) / "model-00001-of-00001.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  std::vector<std::string> names, expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
  for (const NamedTensor& t : file.tensors()) names.push_back(t.name);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    for (const char* rest :
         {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      expected.push_back(layer + rest + ".weight");
  std::sort(names.begin(), names.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names, expected);
  EXPECT_EQ(describe(file.at("model.layers.1.self_attn.k_proj.weight")), "f32 [8, 12]");
  EXPECT_EQ(describe(file.at("model.norm.weight")), "f32 [12]");

  const auto json = nlohmann::json::parse(read_file(at_step(3) / "config.json"));
  const nlohmann::json wanted = {{"model_type", "llama"},
                                 {"architectures", {"LlamaForCausalLM"}},
                                 {"hidden_size", 12},
                                 {"num_hidden_layers", 2},
                                 {"num_attention_heads", 4},
                                 {"num_key_value_heads", 2},
                                 {"head_dim", 4},
                                 {"intermediate_size", 10},
                                 {"vocab_size", 64},
                                 {"max_position_embeddings", 64},
                                 {"rms_norm_eps", 1e-5},
                                 {"rope_theta", 10000.0},
                                 {"hidden_act", "silu"},
                                 {"tie_word_embeddings", false},
                                 {"bos_token_id", 1},
                                 {"eos_token_id", 2},
                                 {"dtype", "float32"}};
  for (const auto& [key, value] : wanted.items()) EXPECT_EQ(json.at(key), value) << key;
}

TEST_F(Checkpoint, OnlyTheNewestAreKept) {
  for (int step : {2, 4, 6, 8, 10}) save(step);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000006", "step-00000008", "step-00000010"}));
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(10));
}

// A run that went on from step 4 saves step 6 again, while the later ones of its first life are still there.
TEST_F(Checkpoint, AStepSavedAgain) {
  for (int step : {4, 6, 8}) save(step);
  optimizer_.weights().as<float>()[0] = 42;
  save(6);
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(6));
  verify_checkpoint(at_step(6));
  test::FlatWeights loaded(layout_);
  load_weights(at_step(6), layout_, true, loaded.flat);
  EXPECT_EQ(*loaded.flat.as<float>(), 42.0f);
}

TEST_F(Checkpoint, LeftoversOfAKilledRunAreIgnoredAndRemoved) {
  save(2);
  fs::create_directory(checkpoints() / "step-00000004.partial");
  write_file(checkpoints() / "step-00000004.partial" / "manifest.json", "{");
  fs::copy(at_step(2), checkpoints() / "step-00000008.removed");
  fs::create_directory(checkpoints() / "step-00000003");  // no manifest: not a checkpoint
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(2));
  save(6);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000002", "step-00000003", "step-00000006"}));
}

TEST_F(Checkpoint, FindsTheNewestOfARunOrTheOneNamed) {
  save(2);
  save(4);
  EXPECT_EQ(find_checkpoint(folder_ / "run"), at_step(4));
  EXPECT_EQ(find_checkpoint(at_step(2)), at_step(2));
  EXPECT_EQ(find_checkpoint(at_step(2).string() + "/"), at_step(2));
  EXPECT_EQ(latest_checkpoint(folder_ / "another"), std::nullopt);
  EXPECT_ERROR(io, "neither a checkpoint nor a run", find_checkpoint(folder_ / "another"));
}

// A disk that fills up, by a bound on the size of files that stops the optimizer's: bytes written past it give EFBIG.
TEST_F(Checkpoint, DiskFullWhileSavingKeepsTheOlderOne) {
  save(2);
  const uintmax_t bound = fs::file_size(at_step(2) / "model-00001-of-00001.safetensors") + 100;
  ASSERT_LT(bound, fs::file_size(at_step(2) / "optimizer-00000.safetensors"));
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{bound, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_ERROR(io, "step-00000004.partial/optimizer-00000.safetensors", save(4));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000002"}));
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(2));
  verify_checkpoint(at_step(2));
  save(4);
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(4));
}

constexpr const char* checkpoint_files[] = {"model-00001-of-00001.safetensors",
                                            "note_head.safetensors",
                                            "optimizer-00000.safetensors",
                                            "config.json",
                                            "config.yaml",
                                            "tokenizer.model"};

// The message names the damaged file and offers the checkpoint before.
template <class Action>
void expect_damage(const fs::path& file, const fs::path& before, const Action& action) {
  try {
    action();
    ADD_FAILURE() << "damage of " << file << " was not found";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::checkpoint) << error.what();
    EXPECT_NE(std::string(error.what()).find(file.string()), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("--resume " + before.string()), std::string::npos) << error.what();
  }
}

TEST_F(CheckpointDamage, AFileIsMissing) {
  for (int step : {2, 4}) save(step);
  for (const char* name : checkpoint_files) {
    const std::string content = read_file(at_step(4) / name);
    fs::remove(at_step(4) / name);
    expect_damage(at_step(4) / name, at_step(2), [&] { verify_checkpoint(at_step(4)); });
    write_file(at_step(4) / name, content);
  }
  verify_checkpoint(at_step(4));
}

TEST_F(CheckpointDamage, AFileIsCutShort) {
  for (int step : {2, 4}) save(step);
  for (const char* name : checkpoint_files) {
    const std::string content = read_file(at_step(4) / name);
    for (size_t left : {size_t{0}, content.size() / 2, content.size() - 1}) {
      write_file(at_step(4) / name, content.substr(0, left));
      expect_damage(at_step(4) / name, at_step(2), [&] { verify_checkpoint(at_step(4)); });
    }
    write_file(at_step(4) / name, content);
  }
}

TEST_F(CheckpointDamage, OneBitIsFlipped) {
  for (int step : {2, 4}) save(step);
  for (const char* name : checkpoint_files) {
    const std::string content = read_file(at_step(4) / name);
    for (size_t place : {size_t{0}, content.size() / 3, content.size() - 1}) {
      std::string damaged = content;
      damaged[place] ^= 1;
      write_file(at_step(4) / name, damaged);
      expect_damage(at_step(4) / name, at_step(2), [&] { verify_checkpoint(at_step(4)); });
    }
    write_file(at_step(4) / name, content);
  }
}

TEST_F(CheckpointDamage, TheManifestIsBroken) {
  for (int step : {2, 4}) save(step);
  const fs::path path = at_step(4) / "manifest.json";
  const std::string content = read_file(path);
  std::vector<std::string> broken = {"", "{", "[]", "3", "{}", content.substr(0, content.size() / 2), "\xff\xfe"};
  auto json = nlohmann::ordered_json::parse(content);
  json["step"] = 5;
  broken.push_back(json.dump());
  for (const std::string& text : broken) {
    write_file(path, text);
    expect_damage(path, at_step(2), [&] { verify_checkpoint(at_step(4)); });
  }
  write_file(path, content);
  verify_checkpoint(at_step(4));
}

// Any byte of the manifest: what is said afterwards is the truth, or an error.
TEST_F(CheckpointDamage, AnyByteOfTheManifest) {
  for (int step : {2, 4}) save(step);
  const fs::path path = at_step(4) / "manifest.json";
  const std::string content = read_file(path);
  int refused = 0;
  const int file = open(path.c_str(), O_WRONLY);
  for (size_t i = 0; i < content.size(); ++i) {
    const char flipped = static_cast<char>(content[i] ^ 1);
    ASSERT_EQ(pwrite(file, &flipped, 1, static_cast<off_t>(i)), 1);
    try {
      const CheckpointInfo info = verify_checkpoint(at_step(4));
      EXPECT_EQ(info.position.step, 4) << "byte " << i;
      EXPECT_EQ(info.position.updates, 3) << "byte " << i;
      EXPECT_EQ(info.tokenizer_digest, "tiny") << "byte " << i;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::checkpoint) << error.what();
      ++refused;
    }
    ASSERT_EQ(pwrite(file, &content[i], 1, static_cast<off_t>(i)), 1);
  }
  close(file);
  EXPECT_GT(refused, static_cast<int>(content.size()) / 2);
}

TEST_F(CheckpointDamage, AnotherFormat) {
  for (int step : {2, 4}) save(step);
  const fs::path path = at_step(4) / "manifest.json";
  auto json = nlohmann::ordered_json::parse(read_file(path));
  json["format"] = 2;
  write_file(path, json.dump());
  EXPECT_ERROR(checkpoint, "is of format 2, this program reads format 1", verify_checkpoint(at_step(4)));
  json["format"] = "new";
  write_file(path, json.dump());
  EXPECT_ERROR(checkpoint, "is of format \"new\"", verify_checkpoint(at_step(4)));
}

TEST_F(CheckpointDamage, TheManifestIsMissing) {
  for (int step : {2, 4}) save(step);
  fs::remove(at_step(4) / "manifest.json");
  expect_damage(at_step(4) / "manifest.json", at_step(2), [&] { verify_checkpoint(at_step(4)); });
}

TEST_F(CheckpointDamage, TheFirstOneHasNoneBeforeIt) {
  save(2);
  fs::remove(at_step(2) / "config.json");
  EXPECT_ERROR(checkpoint, "there is no checkpoint before it", verify_checkpoint(at_step(2)));
}

TEST_F(CheckpointDamage, LatestNamesNothing) {
  for (int step : {2, 4}) save(step);
  for (const char* text : {"step-00000006\n", "", "\n", "rubbish", "step-00000003"}) {
    write_file(checkpoints() / "latest", text);
    expect_damage(checkpoints() / "latest", at_step(4), [&] { latest_checkpoint(folder_ / "run"); });
  }
  fs::remove_all(at_step(2));
  fs::remove_all(at_step(4));
  EXPECT_ERROR(checkpoint, "there is none", latest_checkpoint(folder_ / "run"));
}

TEST_F(CheckpointDamage, AModelOfAnotherShape) {
  save(2);
  ModelConfig other = config_.model;
  other.ffn = 11;
  const ParameterLayout wider(other, 64);
  test::FlatWeights weights(wider);
  EXPECT_ERROR(checkpoint, "mlp.gate_proj.weight is f32 [10, 12], the model wants f32 [11, 12]",
               load_weights(at_step(2), wider, true, weights.flat));
  other = config_.model;
  other.layers = 3;
  const ParameterLayout deeper(other, 64);
  test::FlatWeights more(deeper);
  EXPECT_ERROR(checkpoint, "model.layers.2.", load_weights(at_step(2), deeper, true, more.flat));
}

}  // namespace
}  // namespace notellm

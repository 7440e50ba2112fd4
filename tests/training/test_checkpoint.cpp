// Checkpoints: what comes back is what was saved, and damage of any kind is found and named.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"
#include "training/checkpoint.h"
#include "training/checkpoint_writer.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

bool same(Tensor a, Tensor b) { return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0; }

// A run in a private folder, with a model and moments of random numbers, on one rank.
class Checkpoint : public testing::Test {
 protected:
  test::TempDir folder_;
  RunConfig config_ = make_config(folder_);
  test::TinyData data_ = test::tiny_data(4);
  Communicator self_ = Communicator::self();
  Mesh mesh_{self_, 1};
  TrainingState state_{config_, data_.notes.prompt, mesh_};
  const ParameterLayout& layout_ = state_.layout;
  Optimizer& optimizer_ = state_.optimizer;
  Stream stream_;

  Checkpoint() {
    spdlog::set_level(spdlog::level::off);
    write_file(folder_ / "tokenizer.model", "the tokenizer's bytes");
    std::mt19937 random(1);
    for (const Tensor& t : {optimizer_.weights(), optimizer_.first_moment(), optimizer_.second_moment()})
      for (const Parameter& p : layout_.all())
        for (float& x : p.view(t).span<float>()) x = std::normal_distribution<float>()(random);
  }
  static RunConfig make_config(const test::TempDir& folder) {
    RunConfig c;
    c.seed = 77;
    c.data.shards = folder.path();
    c.model = test::tiny_model_config();
    c.model.tied_head = false;
    c.train.run = folder / "run";
    c.train.keep_checkpoints = 3;
    return c;
  }
  fs::path checkpoints() const { return folder_ / "run" / "checkpoints"; }
  fs::path at_step(int64_t step) const { return checkpoints() / fmt::format("step-{:08}", step); }
  CheckpointWriter writer(int64_t file_bytes = checkpoint_file_bytes) const {
    return {config_, data_.notes, state_, file_bytes};
  }
  void save(int64_t step, int64_t file_bytes = checkpoint_file_bytes) {
    CheckpointWriter w = writer(file_bytes);
    w.begin(stream_, {step, step - 1, 1});
    w.finish();
  }
  void expect_loads(int64_t step) {
    Optimizer loaded(config_.optimizer, layout_, state_.shards);
    load_state(verify_checkpoint(at_step(step)), layout_, state_.shards, loaded);
    EXPECT_TRUE(same(loaded.weights(), optimizer_.weights()));
    EXPECT_TRUE(same(loaded.first_moment(), optimizer_.first_moment()));
    EXPECT_TRUE(same(loaded.second_moment(), optimizer_.second_moment()));
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(checkpoints())) found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }
};

using CheckpointDamage = Checkpoint;

TEST_F(Checkpoint, WhatComesBackIsWhatWasSaved) {
  save(12);
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(12));
  const CheckpointInfo info = verify_checkpoint(at_step(12));
  EXPECT_EQ(info.path, at_step(12));
  EXPECT_EQ(info.manifest.position.step, 12);
  EXPECT_EQ(info.manifest.position.updates, 11);
  EXPECT_EQ(info.manifest.position.skipped, 1);
  EXPECT_EQ(info.manifest.vocabulary, 64);
  EXPECT_EQ(info.manifest.tokens_in_use, 40);
  EXPECT_EQ(info.manifest.tokenizer_digest, "tiny");
  EXPECT_EQ(print_run_config(info.config), print_run_config(config_));
  EXPECT_EQ(read_file(at_step(12) / "tokenizer.model"), "the tokenizer's bytes");

  expect_loads(12);
}

TEST_F(Checkpoint, HasBothFilesOfATokenizerJson) {
  fs::remove(folder_ / "tokenizer.model");
  write_file(folder_ / "tokenizer.json", "its bytes");
  EXPECT_ERROR(io, "tokenizer_config.json", save(1));
  write_file(folder_ / "tokenizer_config.json", "the other's");
  save(1);
  verify_checkpoint(at_step(1));
  EXPECT_EQ(read_file(at_step(1) / "tokenizer.json"), "its bytes");
  EXPECT_EQ(read_file(at_step(1) / "tokenizer_config.json"), "the other's");
  EXPECT_FALSE(fs::exists(at_step(1) / "tokenizer.model"));
}

// Without the note head its weights are left alone: a plain Hugging Face folder has none.
TEST_F(Checkpoint, WeightsWithoutTheNoteHead) {
  save(1);
  fs::remove(at_step(1) / "note_head.safetensors");
  fs::rename(at_step(1) / "model-00001-of-00001.safetensors", at_step(1) / "model.safetensors");
  fs::remove(at_step(1) / "model.safetensors.index.json");
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

// Files of at most 4,000 bytes of data, or of one tensor that is larger: the index names them all, each tensor once.
TEST_F(Checkpoint, SeveralFiles) {
  constexpr int64_t file_bytes = 4000;
  save(3, file_bytes);
  int models = 0, moments = 0;
  for (const auto& entry : fs::directory_iterator(at_step(3))) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path());
    int64_t bytes = 0;
    for (const NamedTensor& t : file.tensors()) bytes += t.tensor.bytes();
    EXPECT_TRUE(bytes <= file_bytes || file.tensors().size() == 1) << name;
    if (name == "note_head.safetensors") continue;
    ++(name.starts_with("model-") ? models : moments);
  }
  EXPECT_GT(models, 2);
  EXPECT_GT(moments, 2 * models - 2);
  const auto index = nlohmann::json::parse(read_file(at_step(3) / "model.safetensors.index.json"));
  size_t tensors = 0;
  int64_t bytes = 0;
  for (const Parameter& p : layout_.all()) {
    if (p.name.starts_with("note_head.")) continue;
    const std::string name = index.at("weight_map").at(p.name);
    EXPECT_TRUE(name.ends_with(fmt::format("-of-{:05}.safetensors", models))) << name;
    EXPECT_TRUE(std::ranges::equal(SafetensorsFile(at_step(3) / name).at(p.name).span<float>(),
                                   p.view(optimizer_.weights()).span<float>()));
    bytes += p.size() * 4;
    ++tensors;
  }
  EXPECT_EQ(index.at("weight_map").size(), tensors);
  EXPECT_EQ(index.at("metadata").at("total_size"), bytes);
  expect_loads(3);
  test::FlatWeights loaded(layout_);
  load_weights(at_step(3), layout_, true, loaded.flat);
  for (const Parameter& p : layout_.all()) EXPECT_TRUE(same(p.view(loaded.flat), p.view(optimizer_.weights())));
}

// What a save writes are the numbers of its begin, whatever happens to them afterwards; and it goes on without any call
// but those at the ends of steps.
TEST_F(Checkpoint, TheSnapshotIsWhatIsSaved) {
  CheckpointWriter w = writer();
  const std::vector<float> before(optimizer_.weights().as<float>(),
                                  optimizer_.weights().as<float>() + optimizer_.weights().size());
  w.begin(stream_, {2, 2, 0});
  std::ranges::fill(optimizer_.weights().span<float>(), -1.0f);
  for (int steps = 0; !latest_checkpoint(config_.train.run); ++steps) {
    ASSERT_LT(steps, 10'000);
    const CheckpointWriter::Standing standing = w.standing();
    w.proceed({&standing, 1});
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  verify_checkpoint(at_step(2));
  test::FlatWeights loaded(layout_);
  load_weights(at_step(2), layout_, true, loaded.flat);
  for (const Parameter& p : layout_.all())
    EXPECT_TRUE(
        std::equal(before.begin() + p.offset, before.begin() + p.offset + p.size(), p.view(loaded.flat).as<float>()))
        << p.name;
}

TEST_F(Checkpoint, ASaveWaitsForTheOneBefore) {
  CheckpointWriter w = writer();
  for (int step : {2, 4, 6}) w.begin(stream_, {step, step, 0});
  verify_checkpoint(at_step(2));
  verify_checkpoint(at_step(4));
  EXPECT_FALSE(fs::exists(at_step(6)));
  w.finish();
  verify_checkpoint(at_step(6));
}

// Checkpoints of format 1: no index, and the moments under another name.
TEST_F(Checkpoint, OldOnesAreRead) {
  save(2);
  fs::remove(at_step(2) / "model.safetensors.index.json");
  fs::rename(at_step(2) / "optimizer-00001-of-00001.safetensors", at_step(2) / "optimizer-00000.safetensors");
  auto manifest = nlohmann::ordered_json::parse(read_file(at_step(2) / "manifest.json"));
  manifest["format"] = 1;
  manifest["files"].erase("model.safetensors.index.json");
  manifest["files"]["optimizer-00000.safetensors"] = manifest["files"]["optimizer-00001-of-00001.safetensors"];
  manifest["files"].erase("optimizer-00001-of-00001.safetensors");
  manifest.erase("manifest_xxh3_128");
  manifest["manifest_xxh3_128"] = checksum(manifest.dump());
  write_file(at_step(2) / "manifest.json", manifest.dump(2));
  expect_loads(2);
  test::FlatWeights loaded(layout_);
  load_weights(at_step(2), layout_, true, loaded.flat);
  EXPECT_EQ(*loaded.flat.as<float>(), *optimizer_.weights().as<float>());
}

TEST_F(Checkpoint, OnlyTheNewestAreKept) {
  for (int step : {2, 4, 6, 8, 10}) save(step);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000006", "step-00000008", "step-00000010"}));
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(10));
}

TEST_F(Checkpoint, EveryNthStaysToo) {
  config_.train.keep_checkpoints = 2;
  config_.train.keep_every = 4;
  for (int step : {2, 4, 6, 8, 10, 12, 14}) save(step);
  EXPECT_EQ(names(),
            (std::vector<std::string>{"latest", "step-00000004", "step-00000008", "step-00000012", "step-00000014"}));
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

TEST_F(Checkpoint, WithoutLatestItIsTheNewest) {
  for (int step : {2, 4}) save(step);
  fs::remove(checkpoints() / "latest");
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(4));
  EXPECT_EQ(find_checkpoint(folder_ / "run"), at_step(4));
  save(6);
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000002", "step-00000004", "step-00000006"}));
}

// Copies that somebody keeps beside them are neither counted nor removed.
TEST_F(Checkpoint, FoldersWithOtherNamesStay) {
  save(2);
  for (const char* name : {"step-00000002-best", "step-2", "step-4_paper", "step-000000002", "step-", "step--0000002"})
    fs::copy(at_step(2), checkpoints() / name);
  for (int step : {4, 6, 8}) save(step);
  EXPECT_EQ(names(),
            (std::vector<std::string>{"latest", "step-", "step--0000002", "step-000000002", "step-00000002-best",
                                      "step-00000004", "step-00000006", "step-00000008", "step-2", "step-4_paper"}));
  EXPECT_EQ(checkpoints_of(checkpoints()), (std::vector<fs::path>{at_step(4), at_step(6), at_step(8)}));
  EXPECT_EQ(find_checkpoint(checkpoints() / "step-4_paper"), checkpoints() / "step-4_paper");
}

TEST_F(Checkpoint, AreInOrderOfTheirSteps) {
  save(2);
  for (const char* name : {"step-99999999", "step-100000000"}) fs::copy(at_step(2), checkpoints() / name);
  EXPECT_EQ(checkpoints_of(checkpoints()),
            (std::vector<fs::path>{at_step(2), checkpoints() / "step-99999999", checkpoints() / "step-100000000"}));
  EXPECT_EQ(checkpoint_before(checkpoints() / "step-100000000").substr(0, 22),
            "the one before it is " + std::string("/"));
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

// The model fits, the moments don't.
TEST_F(Checkpoint, DiskFullWhileSavingKeepsTheOlderOne) {
  save(2);
  const uintmax_t bound = fs::file_size(at_step(2) / "model-00001-of-00001.safetensors") + 100;
  ASSERT_LT(bound, fs::file_size(at_step(2) / "optimizer-00001-of-00001.safetensors"));
  {
    const test::SmallDisk disk(bound);
    EXPECT_ERROR(io, "step-00000004.partial/optimizer-00001-of-00001.safetensors", save(4));
  }
  EXPECT_EQ(names(), (std::vector<std::string>{"latest", "step-00000002"}));
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(2));
  verify_checkpoint(at_step(2));
  save(4);
  EXPECT_EQ(latest_checkpoint(folder_ / "run"), at_step(4));
}

// Saves that fail are survived one after the other; one that is written begins the count anew; too many end the run.
TEST_F(Checkpoint, FailedOnesAreSurvivedUpToALimit) {
  config_.train.most_failed_checkpoints = 2;
  CheckpointWriter w = writer();
  const auto try_to_save = [&](int64_t step) {  // in the background, to the end of the phase that is first
    w.begin(stream_, {step, step, 0});
    while (w.standing() == CheckpointWriter::Standing::working) std::this_thread::yield();
    const CheckpointWriter::Standing standing = w.standing();
    w.proceed({&standing, 1});
  };
  for (int64_t first : {1, 3}) {
    try_to_save(first);
    w.finish();
    const test::SmallDisk disk(100);
    try_to_save(first + 1);
    EXPECT_EQ(names().back(), fmt::format("step-{:08}", first));
  }
  const test::SmallDisk disk(100);
  EXPECT_ERROR(io, "2 checkpoints in a row could not be written, the last one because: cannot write", try_to_save(5));
  EXPECT_EQ(latest_checkpoint(config_.train.run), at_step(3));
  verify_checkpoint(at_step(3));
}

constexpr const char* checkpoint_files[] = {"model-00001-of-00001.safetensors",
                                            "note_head.safetensors",
                                            "optimizer-00001-of-00001.safetensors",
                                            "model.safetensors.index.json",
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

// Whole in itself, and as large, but of another step.
TEST_F(CheckpointDamage, AFileOfAnotherCheckpoint) {
  for (int step : {2, 4}) {
    optimizer_.weights().as<float>()[0] = static_cast<float>(step);
    optimizer_.second_moment().as<float>()[0] = static_cast<float>(step);
    save(step);
  }
  for (const char* name : {"model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"}) {
    const std::string content = read_file(at_step(4) / name);
    write_file(at_step(4) / name, read_file(at_step(2) / name));
    expect_damage(at_step(4) / name, at_step(2), [&] { verify_checkpoint(at_step(4)); });
    write_file(at_step(4) / name, content);
  }
  // One beside them that the manifest does not know is not read.
  write_file(at_step(4) / "optimizer-00002-of-00002.safetensors",
             read_file(at_step(2) / "optimizer-00001-of-00001.safetensors"));
  expect_loads(4);
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
      EXPECT_EQ(info.manifest.position.step, 4) << "byte " << i;
      EXPECT_EQ(info.manifest.position.updates, 3) << "byte " << i;
      EXPECT_EQ(info.manifest.tokenizer_digest, "tiny") << "byte " << i;
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
  json["format"] = 3;
  write_file(path, json.dump());
  EXPECT_ERROR(checkpoint, "is of format 3, this program reads formats 1 to 2", verify_checkpoint(at_step(4)));
  json["format"] = "new";
  write_file(path, json.dump());
  EXPECT_ERROR(checkpoint, "is of format \"new\"", verify_checkpoint(at_step(4)));
}

TEST_F(CheckpointDamage, TheManifestIsMissing) {
  for (int step : {2, 4}) save(step);
  fs::remove(at_step(4) / "manifest.json");
  expect_damage(at_step(4) / "manifest.json", at_step(2), [&] { verify_checkpoint(at_step(4)); });
}

TEST_F(CheckpointDamage, TheManifestIsNestedDeep) {
  for (int step : {2, 4}) save(step);
  const fs::path path = at_step(4) / "manifest.json";
  const std::string content = read_file(path), nested = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  write_file(path, nested);
  EXPECT_ERROR(checkpoint, path.string() + " is damaged", verify_checkpoint(at_step(4)));
  for (const char* key : {"format", "files"}) {
    auto json = nlohmann::ordered_json::parse(content);
    json[key] = "HERE";
    std::string text = json.dump();
    write_file(path, text.replace(text.find("\"HERE\""), 6, nested));
    EXPECT_ERROR(checkpoint, path.string(), verify_checkpoint(at_step(4)));
  }
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

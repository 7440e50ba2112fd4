// The training loop, alone and on several ranks: it learns, ends and goes on as if it had never ended, and refuses what
// does not fit.
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_shards.h"
#include "training/checkpoint.h"
#include "training/trainer.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// Tiny shards in a folder that all ranks share, gone after the test.
class Trainer : public testing::Test {
 protected:
  Communicator world_ = Communicator::world();
  std::optional<test::TempDir> owner_;  // rank 0's
  fs::path folder_;

  void SetUp() override {
    spdlog::set_level(spdlog::level::off);
    if (world_.rank() == 0) owner_.emplace();
    folder_ = world_.broadcast("folder", owner_ ? owner_->path().string() : std::string(), 0);
    write_shards("shards", test::tiny_data(12));
  }
  void TearDown() override { world_.barrier("end of test"); }

  void write_shards(const char* name, const test::TinyData& data) {
    if (world_.rank() == 0) test::write_tiny_shards(*owner_ / name, data);
    world_.barrier("shards");
  }

  // final_share 1: the learning rate does not depend on the number of steps.
  RunConfig config(const std::string& run) const {
    RunConfig c;
    c.seed = 5;
    c.data.shards = folder_ / "shards";
    c.model = test::tiny_model_config();
    c.loss.alpha = 0.1;
    c.optimizer.learning_rate = 0.01;
    c.optimizer.warmup_steps = 2;
    c.optimizer.final_share = 1;
    c.train.run = folder_ / run;
    c.train.steps = 6;
    c.train.pairs_per_step = 8;
    c.train.checkpoint_every = 100;
    c.train.keep_checkpoints = 100;
    return c;
  }
  fs::path checkpoint(const std::string& run, int64_t step) const {
    return folder_ / run / "checkpoints" / fmt::format("step-{:08}", step);
  }
  std::vector<nlohmann::json> metrics(const std::string& run) const {
    std::vector<nlohmann::json> lines;
    std::istringstream text(read_file(folder_ / run / "metrics.jsonl"));
    for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }
  void expect_same_state(const fs::path& a, const fs::path& b) const {
    for (const char* name :
         {"model-00001-of-00001.safetensors", "note_head.safetensors", "optimizer-00001-of-00001.safetensors"})
      EXPECT_TRUE(read_file(a / name) == read_file(b / name)) << a << " and " << b << " differ in " << name;
  }
};

TEST_F(Trainer, LossFalls) {
  RunConfig c = config("run");
  c.train.steps = 60;
  EXPECT_EQ(train(c, "never", world_), TrainingEnd::finished);
  const auto lines = metrics("run");
  ASSERT_EQ(lines.size(), 60u);
  const auto mean = [&](const char* key, size_t first) {
    double sum = 0;
    for (size_t i = first; i < first + 6; ++i) sum += lines[i].at(key).get<double>();
    return sum / 6;
  };
  EXPECT_LT(mean("contrastive_loss", 54), 0.5 * mean("contrastive_loss", 0));
  EXPECT_LT(mean("token_loss", 54), 0.8 * mean("token_loss", 0));
  EXPECT_GT(mean("positive_similarity", 54), mean("positive_similarity", 0));
}

TEST_F(Trainer, GoesOnFromACheckpointBitForBit) {
  for (Precision precision : {Precision::fp32, Precision::bf16}) {
    const std::string name = precision == Precision::fp32 ? "fp32" : "bf16";
    RunConfig whole = config(name), rest = config(name + "_rest");
    whole.train.checkpoint_every = 2;
    whole.precision = rest.precision = precision;
    EXPECT_EQ(train(whole, "never", world_), TrainingEnd::finished);
    for (int64_t from : {2, 4}) {
      rest.train.run = folder_ / fmt::format("{}_from_{}", name, from);
      EXPECT_EQ(train(rest, checkpoint(name, from), world_), TrainingEnd::finished);
      expect_same_state(checkpoint(name, 6),
                        folder_ / fs::path(rest.train.run).filename() / "checkpoints" / "step-00000006");
    }
    const auto lines = metrics(name), again = metrics(name + "_from_4");
    ASSERT_EQ(again.size(), 2u);
    for (const char* key : {"step", "loss", "token_loss", "gradient_norm", "tau", "learning_rate"})
      for (int i : {0, 1}) EXPECT_EQ(again[i].at(key), lines[4 + i].at(key)) << key;
  }
}

TEST_F(Trainer, StopsAndGoesOnByItself) {
  RunConfig c = config("whole");
  EXPECT_EQ(train(c, "auto", world_), TrainingEnd::finished);  // nothing to go on from: anew
  c = config("parts");
  for (int steps : {1, 4, 6}) {
    c.train.steps = steps;
    EXPECT_EQ(train(c, "auto", world_), TrainingEnd::finished);
    EXPECT_EQ(latest_checkpoint(c.train.run), checkpoint("parts", steps));
  }
  expect_same_state(checkpoint("whole", 6), checkpoint("parts", 6));
  EXPECT_EQ(metrics("parts").size(), 6u);
  EXPECT_EQ(train(c, "auto", world_), TrainingEnd::finished);  // all steps are done: nothing happens
  EXPECT_EQ(metrics("parts").size(), 6u);
}

// A signal that only rank 0 gets, in the middle of a run that would take hours: all ranks end after the same step,
// which is saved, and the run that goes on is bit for bit the one that was never stopped.
TEST_F(Trainer, EndsOnASignalAndGoesOn) {
  for (int number : {SIGTERM, SIGUSR1}) {
    const std::string name = number == SIGTERM ? "term" : "usr1";
    RunConfig c = config(name);
    c.train.steps = 100'000'000;
    std::jthread sender;
    if (world_.rank() == 0)
      sender = std::jthread([path = folder_ / name / "metrics.jsonl", number](const std::stop_token& stop) {
        std::error_code not_there;
        while (!stop.stop_requested()) {  // some lines are there: the loop is running
          if (const auto size = fs::file_size(path, not_there); !not_there && size > 500) {
            kill(getpid(), number);
            return;
          }
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      });
    EXPECT_EQ(train(c, "never", world_), TrainingEnd::preempted);
    const int64_t done = verify_checkpoint(*latest_checkpoint(c.train.run)).manifest.position.step;
    EXPECT_GT(done, 0);
    EXPECT_LT(done, c.train.steps);
    c.train.steps = static_cast<int>(done) + 2;
    EXPECT_EQ(train(c, "auto", world_), TrainingEnd::finished);
    RunConfig whole = config(name + "_whole");
    whole.train.steps = c.train.steps;
    EXPECT_EQ(train(whole, "never", world_), TrainingEnd::finished);
    expect_same_state(checkpoint(name, c.train.steps), checkpoint(name + "_whole", c.train.steps));
  }
}

TEST_F(Trainer, DoesNotWriteIntoARunThatExists) {
  const RunConfig c = config("run");
  train(c, "never", world_);
  EXPECT_ERROR(usage, "go on with --resume auto", train(c, "never", world_));
  EXPECT_ERROR(io, "neither a checkpoint nor a run", train(c, folder_ / "elsewhere", world_));
  RunConfig other = config("other");
  train(other, "never", world_);
  const auto lines = metrics("run");
  EXPECT_ERROR(usage, "go on with --resume auto", train(c, folder_ / "other", world_));
  EXPECT_EQ(metrics("run"), lines);
  other = config("new");
  other.train.steps += 1;
  EXPECT_EQ(train(other, folder_ / "run", world_), TrainingEnd::finished);
  EXPECT_TRUE(world_.rank() != 0 || !fs::exists(folder_ / "new" / "lock"));  // rank 0 has it
}

TEST_F(Trainer, EvaluatesOnASampleAndKeepsTheNewestCheckpoints) {
  RunConfig c = config("run");
  c.train.checkpoint_every = 1;
  c.train.keep_checkpoints = 2;
  c.train.evaluate_every = 3;
  c.train.evaluate_pairs = 10;
  train(c, "never", world_);
  std::vector<int64_t> evaluated;
  for (const auto& line : metrics("run"))
    if (line.contains("mrr")) {
      evaluated.push_back(line.at("step"));
      EXPECT_EQ(line.at("recall_100"), 1.0);  // the pool has 12 notes
      EXPECT_GT(line.at("mrr").get<double>(), 1.0 / 12);
    }
  EXPECT_EQ(evaluated, (std::vector<int64_t>{3, 6}));
  EXPECT_FALSE(fs::exists(checkpoint("run", 4)));
  EXPECT_TRUE(fs::exists(checkpoint("run", 5)));
  EXPECT_EQ(print_run_config(read_run_config((folder_ / "run" / "config.yaml").string(), {})), print_run_config(c));
}

// The first update throws the weights out of all range: every step after it has NaN or Inf, changes nothing and is
// counted, until the run ends. The state on disk is that of the last checkpoint.
TEST_F(Trainer, EndsAfterTooManyStepsWithNaN) {
  RunConfig c = config("run");
  train(c, "never", world_);
  c.train.steps = 100;
  c.train.checkpoint_every = 1;
  c.train.most_skipped_steps = 4;
  c.optimizer.embedding_scale = 1e32;
  EXPECT_ERROR(diverged, "4 steps in a row had NaN or Inf, the last one step", train(c, "auto", world_));
  const auto lines = metrics("run");
  EXPECT_TRUE(lines.back().at("gradient_norm").is_null());
  EXPECT_EQ(lines.back().at("skipped_steps"), 3);
  const CheckpointInfo last = verify_checkpoint(*latest_checkpoint(c.train.run));
  EXPECT_EQ(last.manifest.position.updates + last.manifest.position.skipped, last.manifest.position.step);
  EXPECT_EQ(last.manifest.position.skipped, 3);
  verify_checkpoint(checkpoint("run", 6));
}

// Somebody removes the folder of checkpoints again and again while the run saves after every step: some saves fail, the
// run goes on, and what stands there in the end is whole.
TEST_F(Trainer, ALostFolderIsSurvived) {
  RunConfig c = config("run"), whole = config("whole");
  c.train.steps = whole.train.steps = 40;
  c.train.checkpoint_every = 1;
  c.train.keep_checkpoints = 2;
  c.train.most_failed_checkpoints = 1000;
  std::atomic<int> removed = 0;
  {
    std::jthread remover;
    if (world_.rank() == 0)
      remover = std::jthread([&](const std::stop_token& stop) {
        std::mt19937 random(1);
        while (!stop.stop_requested()) {
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
          std::error_code changes_meanwhile;
          // As if moved away at once: what is removed bit by bit would be found half-removed.
          fs::rename(folder_ / "run" / "checkpoints", folder_ / "lost", changes_meanwhile);
          if (!changes_meanwhile) ++removed;
          fs::remove_all(folder_ / "lost", changes_meanwhile);
        }
      });
    c.train.steps = 38;
    try {
      train(c, "never", world_);
    } catch (const Error& error) {  // when the last save is the one that failed
      EXPECT_EQ(error.kind(), ErrorKind::io) << error.what();
    }
  }
  if (world_.rank() == 0) {
    EXPECT_GT(removed, 3);
  }
  world_.barrier("removed");
  c.train.steps = 40;
  EXPECT_EQ(train(c, "auto", world_), TrainingEnd::finished);
  verify_checkpoint(*latest_checkpoint(c.train.run));
  EXPECT_EQ(train(whole, "never", world_), TrainingEnd::finished);
  expect_same_state(checkpoint("whole", 40), checkpoint("run", 40));
}

// A file stands where the folder of checkpoints should: after so many failures the run ends.
TEST_F(Trainer, EndsAfterTooManyCheckpointsThatFailed) {
  RunConfig c = config("run");
  c.train.checkpoint_every = 1;
  c.train.steps = 100;
  if (world_.rank() == 0) {
    fs::create_directory(folder_ / "run");
    write_file(folder_ / "run" / "checkpoints", "in the way");
  }
  world_.barrier("in the way");
  std::ostringstream log;
  const auto usual = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  spdlog::set_level(spdlog::level::warn);
  EXPECT_ERROR(io, "3 checkpoints in a row could not be written", train(c, "never", world_));
  spdlog::set_default_logger(usual);
  if (world_.rank() == 0) {
    EXPECT_NE(log.str().find("the checkpoint after step 1 was not written"), std::string::npos) << log.str();
    EXPECT_LT(metrics("run").size(), 100u);
    EXPECT_GE(metrics("run").size(), 3u);
  }
}

// Without learning the weights stay those of the checkpoint that a run begins with, on any mesh; moments and steps
// begin anew.
TEST_F(Trainer, BeginsWithTheWeightsOfAnotherRun) {
  train(config("first"), "never", world_);
  int i = 0;
  for (int tensor = 1; tensor <= std::min(2, world_.size()); ++tensor)
    for (Sharding sharding : {Sharding::none, Sharding::parameters}) {
      RunConfig c = config(fmt::format("next{}", i++));
      c.seed = 77;
      c.parallel = {tensor, sharding, Recompute::none};
      c.optimizer.learning_rate = 0;
      c.train.steps = 1;
      c.model.from = folder_ / "first";
      train(c, "never", world_);
      const fs::path after = folder_ / fmt::format("next{}", i - 1) / "checkpoints" / "step-00000001";
      for (const char* name : {"model-00001-of-00001.safetensors", "note_head.safetensors"})
        EXPECT_TRUE(read_file(checkpoint("first", 6) / name) == read_file(after / name)) << name;
      EXPECT_EQ(read_manifest(after).position.step, 1);
    }
}

TEST_F(Trainer, WeightsAloneAreNotResumed) {
  train(config("first"), "never", world_);
  const fs::path weights = checkpoint("first", 6);
  if (world_.rank() == 0) {
    Manifest manifest = read_manifest(weights);
    std::erase_if(manifest.files, [](const FileRecord& file) { return file.name.starts_with("optimizer-"); });
    write_manifest(weights, manifest);
  }
  world_.barrier("weights");
  RunConfig c = config("next");
  EXPECT_ERROR(checkpoint, "has weights alone, no optimizer state to go on with: begin a run with them, by model.from",
               train(c, weights, world_));
  c.model.from = weights;
  c.train.steps = 1;
  EXPECT_EQ(train(c, "never", world_), TrainingEnd::finished);
}

TEST_F(Trainer, ACheckpointOfAnotherModelIsRefused) {
  RunConfig c = config("run");
  train(c, "never", world_);
  c.model.ffn = 11;
  c.model.tied_head = false;
  EXPECT_ERROR(checkpoint, "model.ffn 10 → 11, model.tied_head true → false", train(c, "auto", world_));
}

TEST_F(Trainer, ACheckpointOfAnotherTokenizerIsRefused) {
  RunConfig c = config("run");
  train(c, "never", world_);
  test::TinyData data = test::tiny_data(12);
  data.notes.tokenizer_digest = "another";
  write_shards("shards2", data);
  c.data.shards = folder_ / "shards2";
  EXPECT_ERROR(checkpoint, "shards of another tokenizer", train(c, "auto", world_));
}

// Categories and hashtags are optional: without any, there is the contrastive loss alone.
TEST_F(Trainer, NotesWithoutLabels) {
  test::TinyData data = test::tiny_data(12);
  for (int note = 0; note < 12; ++note) data.notes.category_id[note] = -1;
  data.notes.category = data.notes.hashtag_inner = data.notes.hashtag_last = {};
  for (int note = 0; note < 12; ++note) data.notes.category.push_back(std::vector<int32_t>());
  data.notes.hashtag_begin.assign(13, 0);
  write_shards("shards3", data);
  RunConfig c = config("run");
  c.data.shards = folder_ / "shards3";
  EXPECT_EQ(train(c, "never", world_), TrainingEnd::finished);
}

// Damage is found on every rank before anything is written.
TEST_F(Trainer, ADamagedCheckpointIsRefused) {
  RunConfig c = config("run");
  c.train.checkpoint_every = 3;
  train(c, "never", world_);
  if (world_.rank() == 0) fs::resize_file(checkpoint("run", 6) / "optimizer-00001-of-00001.safetensors", 1000);
  world_.barrier("damage");
  EXPECT_ERROR(checkpoint, "--resume " + checkpoint("run", 3).string(), train(c, "auto", world_));
  world_.barrier("refused");
  if (world_.rank() == 0) fs::remove_all(checkpoint("run", 6) / "optimizer-00001-of-00001.safetensors");
  world_.barrier("damage");
  EXPECT_EQ(train(c, checkpoint("run", 3), world_), TrainingEnd::finished);
  verify_checkpoint(checkpoint("run", 6));
}

TEST_F(Trainer, OtherSettingsAreNamed) {
  RunConfig c = config("run");
  train(c, "never", world_);
  std::ostringstream log;
  const auto usual = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  spdlog::set_level(spdlog::level::warn);
  train(c, "auto", world_);
  EXPECT_EQ(log.str(), "");
  c.train.log_every = 3;  // changes nothing that is computed
  c.model.init.tau = 1;   // the beginning is past
  c.seed = 6;
  c.train.steps = 7;
  train(c, "auto", world_);
  spdlog::set_default_logger(usual);
  if (world_.rank() == 0) {
    EXPECT_NE(log.str().find("from here on: seed 5 → 6, train.steps 6 → 7"), std::string::npos) << log.str();
  } else {
    EXPECT_EQ(log.str(), "");
  }
}

TEST_F(Trainer, RanksThatDisagree) {
  if (world_.size() == 1) return;
  RunConfig c = config("run");
  c.seed = world_.rank();
  EXPECT_ERROR(peer, "configuration", train(c, "never", world_));
  c = config("run");
  EXPECT_ERROR(peer, "configuration", train(c, world_.rank() == 0 ? "never" : "auto", world_));
  EXPECT_FALSE(fs::exists(folder_ / "run" / "metrics.jsonl"));
}

TEST_F(Trainer, TooFewPairs) {
  RunConfig c = config("run");
  c.train.pairs_per_step = 25;
  EXPECT_ERROR(data, "24", train(c, "never", world_));
  world_.barrier("refused");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

}  // namespace
}  // namespace notellm

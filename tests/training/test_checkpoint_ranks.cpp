// Checkpoints of several ranks: whatever shares the model out, the files are the same, and any other reads them.
// Ranks come from mpirun; smaller groups of them are tried too.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_shards.h"
#include "training/checkpoint.h"
#include "training/checkpoint_writer.h"
#include "training/trainer.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

struct Topology {
  int data, tensor;
  Sharding sharding;
  std::string name() const { return fmt::format("{}x{}-{}", data, tensor, static_cast<int>(sharding)); }
};

class CheckpointRanks : public testing::Test {
 protected:
  Communicator world_ = Communicator::world();
  std::optional<test::TempDir> owner_;  // rank 0's
  fs::path folder_;
  test::TinyData data_ = test::tiny_data(12);

  void SetUp() override {
    spdlog::set_level(spdlog::level::off);
    if (world_.rank() == 0) owner_.emplace();
    folder_ = world_.broadcast("folder", owner_ ? owner_->path().string() : std::string(), 0);
    if (world_.rank() == 0) test::write_tiny_shards(folder_ / "shards", data_);
    world_.barrier("shards");
  }
  void TearDown() override { world_.barrier("end of test"); }

  RunConfig config(const std::string& run, const Topology& t) const {
    RunConfig c;
    c.seed = 5;
    c.data.shards = folder_ / "shards";
    c.model = test::tiny_model_config();
    c.model.ffn = 12;  // divides by 4
    c.model.tied_head = false;
    c.loss.alpha = 0.1;
    c.optimizer.learning_rate = 1e-3;
    c.optimizer.warmup_steps = 2;
    c.optimizer.final_share = 1;
    c.train.run = folder_ / run;
    c.train.steps = 6;
    c.train.pairs_per_step = 8;
    c.train.checkpoint_every = 3;
    c.parallel.tensor = t.tensor;
    c.parallel.sharding = t.sharding;
    return c;
  }
  static std::string step_name(int64_t step) { return fmt::format("checkpoints/step-{:08}", step); }

  // work(ranks, topology, name of the topology before; at first empty) on the first ranks of the world, of every
  // topology that it has room for.
  template <class Work>
  void for_all_topologies(const Work& work) {
    std::string before;
    for (int ranks = 1; ranks <= world_.size(); ranks *= 2) {
      const bool takes_part = world_.rank() < ranks;
      Communicator group = world_.split("group", takes_part ? 0 : 1);
      for (int tensor = 1; tensor <= ranks; tensor *= 2)
        for (Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::parameters}) {
          const Topology topology{ranks / tensor, tensor, sharding};
          SCOPED_TRACE(topology.name());
          if (takes_part) work(group, topology, before);
          before = topology.name();
          world_.barrier("topology");
        }
    }
  }
};

// The number that element i of a tensor of the checkpoint has in these tests.
float value_of(const std::string& tensor, int64_t i) {
  return static_cast<float>(hash64(fmt::format("{} {}", tensor, i)) >> 40) / 1024.0f;
}

// f(place in the arrays of pieces, tensor's name without prefix, element of the whole tensor) for all that a rank
// keeps.
template <class Use>
void for_elements(const TrainingState& state, const Use& use) {
  state.shards.for_runs(state.layout, [&](const ShardMap::Run& run) {
    for_row_runs(run.parameter, run.first, run.count, [&](int64_t whole, int64_t at, int64_t elements) {
      for (int64_t i = 0; i < elements; ++i) use(run.at + at + i, run.parameter.name, whole + i);
    });
  });
}

// With files so small that there are several: each tensor of each file, element by element. Then every other topology
// reads them to the bit.
TEST_F(CheckpointRanks, FilesAreTheSameForAnyTopologyAndReadByAny) {
  for_all_topologies([&](Communicator& ranks, const Topology& topology, const std::string&) {
    const RunConfig c = config("run-" + topology.name(), topology);
    Mesh mesh(ranks, topology.tensor);
    TrainingState state(c, data_.notes.prompt, mesh);
    Optimizer& o = state.optimizer;
    for_elements(state, [&](int64_t at, const std::string& name, int64_t i) {
      o.weights().as<float>()[at] = value_of(name, i);
      o.first_moment().as<float>()[at] = value_of("first_moment." + name, i);
      o.second_moment().as<float>()[at] = value_of("second_moment." + name, i);
    });
    CheckpointWriter writer(c, data_.notes, state, 4000);
    Stream stream;
    writer.begin(stream, {3, 3, 0});
    writer.finish();
    if (ranks.rank() != 0) return;
    const fs::path checkpoint = fs::path(c.train.run) / step_name(3);
    int files = 0, tensors = 0;
    for (const FileRecord& record : verify_checkpoint(checkpoint).manifest.files) {
      if (!record.name.ends_with(".safetensors")) continue;
      ++files;
      const SafetensorsFile file(checkpoint / record.name);
      for (const auto& [name, t] : file.tensors()) {
        ++tensors;
        for (int64_t i = 0; i < t.size(); ++i) ASSERT_EQ(t.as<float>()[i], value_of(name, i)) << name << " " << i;
      }
    }
    EXPECT_EQ(tensors, 3 * std::ssize(state.layout.all()));
    EXPECT_GT(files, 6);
    // Whoever wrote it: the same bytes.
    const fs::path first = folder_ / "run-1x1-0" / step_name(3);
    for (const FileRecord& record : read_manifest(checkpoint).files) {
      if (record.name == "config.yaml") continue;
      EXPECT_TRUE(read_file(checkpoint / record.name) == read_file(first / record.name)) << record.name;
    }
  });
  for_all_topologies([&](Communicator& ranks, const Topology& topology, const std::string&) {
    const RunConfig c = config("none", topology);
    Mesh mesh(ranks, topology.tensor);
    TrainingState state(c, data_.notes.prompt, mesh);
    load_state(verify_checkpoint(folder_ / "run-1x1-0" / step_name(3), ranks), state.layout, state.shards,
               state.optimizer);
    const Optimizer& o = state.optimizer;
    int64_t wrong = 0;
    for_elements(state, [&](int64_t at, const std::string& name, int64_t i) {
      wrong += o.weights().as<float>()[at] != value_of(name, i);
      wrong += o.first_moment().as<float>()[at] != value_of("first_moment." + name, i);
      wrong += o.second_moment().as<float>()[at] != value_of("second_moment." + name, i);
    });
    EXPECT_EQ(wrong, 0);
  });
}

std::vector<double> losses(const fs::path& run) {
  std::vector<double> found;
  std::istringstream text(read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(text, line);) found.push_back(nlohmann::json::parse(line).at("loss"));
  return found;
}

// Three steps, a checkpoint, three more. Gone on from on the same ranks: the same bytes in the end. On others, which
// are those of the next topology in the order of trial: the losses of the run on one rank.
TEST_F(CheckpointRanks, GoesOnOnTheSameRanksToTheBitAndOnAnyOthersToRounding) {
  for (Precision precision : {Precision::fp32, Precision::bf16}) {
    const std::string name = precision == Precision::fp32 ? "fp32" : "bf16";
    for_all_topologies([&](Communicator& ranks, const Topology& topology, const std::string& before) {
      RunConfig whole = config(name + "-whole-" + topology.name(), topology);
      whole.precision = precision;
      EXPECT_EQ(train(whole, "never", ranks), TrainingEnd::finished);
      const fs::path checkpoint = fs::path(whole.train.run) / step_name(3);
      RunConfig rest = whole;
      rest.train.run = folder_ / (name + "-rest-" + topology.name());
      EXPECT_EQ(train(rest, checkpoint, ranks), TrainingEnd::finished);
      RunConfig other = whole;
      other.train.run = folder_ / (name + "-other-" + topology.name());
      if (!before.empty()) train(other, folder_ / (name + "-whole-" + before) / step_name(3), ranks);
      if (ranks.rank() != 0) return;
      for (const FileRecord& record : verify_checkpoint(fs::path(whole.train.run) / step_name(6)).manifest.files)
        if (record.name.ends_with(".safetensors")) {
          EXPECT_TRUE(read_file(fs::path(whole.train.run) / step_name(6) / record.name) ==
                      read_file(fs::path(rest.train.run) / step_name(6) / record.name))
              << record.name;
        }
      if (precision == Precision::bf16 || before.empty()) return;
      const std::vector<double> alone = losses(folder_ / "fp32-whole-1x1-0"), after = losses(other.train.run);
      ASSERT_EQ(after.size(), 3u);
      for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(after[i], alone[3 + i], 1e-5 * alone[3 + i]) << "after " << before;
    });
  }
}

// A disk that is full on the last rank alone: all ranks throw the same, and nothing is left.
TEST_F(CheckpointRanks, AFailureOnOneRankIsThatOfAll) {
  const Topology topology{world_.size(), 1, Sharding::optimizer};
  const RunConfig c = config("run", topology);
  Mesh mesh(world_, 1);
  TrainingState state(c, data_.notes.prompt, mesh);
  state.start_anew(c, data_.notes.prompt);
  CheckpointWriter writer(c, data_.notes, state);
  Stream stream;
  writer.begin(stream, {1, 1, 0});
  writer.finish();
  {
    std::optional<test::SmallDisk> disk;
    if (world_.rank() == world_.size() - 1) disk.emplace(100);
    writer.begin(stream, {2, 2, 0});
    EXPECT_ERROR(io, "step-00000002.partial/", writer.finish());
  }
  world_.barrier("failed");
  EXPECT_EQ(latest_checkpoint(c.train.run), fs::path(c.train.run) / step_name(1));
  EXPECT_FALSE(fs::exists(folder_ / "run" / (step_name(2) + ".partial")));
  world_.barrier("looked");
  writer.begin(stream, {2, 2, 0});
  writer.finish();
  verify_checkpoint(*latest_checkpoint(c.train.run), world_);
}

// Damage that one rank finds is known to all.
TEST_F(CheckpointRanks, DamageOfAnyFileIsNamedOnAllRanks) {
  const Topology topology{world_.size(), 1, Sharding::none};
  RunConfig c = config("run", topology);
  train(c, "never", world_);
  const fs::path checkpoint = fs::path(c.train.run) / step_name(6);
  for (const FileRecord& record : read_manifest(checkpoint).files) {
    const std::string content = read_file(checkpoint / record.name);
    world_.barrier("read");
    if (world_.rank() == 0) write_file(checkpoint / record.name, content.substr(0, content.size() - 1) + "\x01");
    world_.barrier("damaged");
    EXPECT_ERROR(checkpoint, record.name + " is damaged", verify_checkpoint(checkpoint, world_));
    world_.barrier("seen");
    if (world_.rank() == 0) fs::remove(checkpoint / record.name);
    world_.barrier("removed");
    EXPECT_ERROR(checkpoint, record.name + " is missing", verify_checkpoint(checkpoint, world_));
    world_.barrier("seen");
    if (world_.rank() == 0) write_file(checkpoint / record.name, content);
    world_.barrier("repaired");
  }
  verify_checkpoint(checkpoint, world_);
}

}  // namespace
}  // namespace notellm

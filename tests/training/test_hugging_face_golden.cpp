// Small random models of each supported kind (tests/golden/hugging_face), read as import reads them, against what
// transformers computes with them: logits, note vectors, the joint loss and every gradient.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "model/note_head.h"
#include "model/transformer.h"
#include "runtime/files.h"
#include "tests/support/whole_model.h"
#include "training/import.h"
#include "training/step.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr int64_t tokens = 39;
const fs::path golden_folder = fs::path(NOTELLM_SOURCE_DIR) / "tests/golden/hugging_face";

// The golden values are of double precision, but for rotary angles, which transformers has in f32: 17 positions · 2^-24
// = 1e-6. Here all is f32: sums of up to 40 terms round by √40 · 2^-24 = 4e-7 of their size, and about ten follow each
// other in each of two layers, forward and backward: √40 · 4e-7 = 2.4e-6. Twice the two together.
constexpr double tolerance = 2 * (1e-6 + 2.4e-6);

NoteTable read_notes(const nlohmann::json& json) {
  NoteTable n;
  const auto list = [](const nlohmann::json& j) { return j.get<std::vector<int32_t>>(); };
  n.prompt.emb = json.at("emb");
  n.prompt.eos = json.at("eos");
  n.prompt.vocabulary = tokens + 1;
  n.prompt.category_instruction = list(json.at("instruction"));
  n.prompt.category_guidance = list(json.at("guidance"));
  for (size_t i = 0; i < json.at("inputs").size(); ++i) {
    n.ids.push_back(std::to_string(i));
    n.titles.push_back("");
    n.category_input.push_back(list(json.at("inputs")[i]));
    n.hashtag_input.push_back(list(json.at("inputs")[i]));
    n.category.push_back(list(json.at("categories")[i]));
    n.category_id.push_back(0);
    n.hashtag_begin.push_back(0);
    n.clicks.push_back(1);
    n.in_pool.push_back(1);
  }
  n.category_names = {"a"};
  return n;
}

PairTable read_pairs(const nlohmann::json& json) {
  PairTable pairs;
  for (const auto& pair : json.at("pairs")) pairs.train.push_back({pair[0], pair[1], 1.0f});
  return pairs;
}

struct Golden {
  explicit Golden(const std::string& name)
      : folder(golden_folder / name),
        json(nlohmann::json::parse(read_file(golden_folder / "notes.json"))),
        file(folder / "golden.safetensors"),
        notes(read_notes(json)),
        pairs(read_pairs(json)) {
    HuggingFaceModel model = read_hugging_face_config(folder);
    model.config.note_dim = 6;
    config.model = model.config;
    config.loss.alpha = json.at("alpha");
    config.loss.hashtag_share = 0;
    config.train.pairs_per_step = static_cast<int>(pairs.train.size());
    const HuggingFaceWeights source(folder, model, tokens);
    type = source.type();
    layout.emplace(config.model, padded_vocabulary(tokens + 1));
    flat.resize(static_cast<size_t>(layout->size()));
    for (const Parameter& p : layout->all()) {
      float* to = p.view(weights()).as<float>();
      if (p.name == "note_head.tau")
        *to = json.at("tau");
      else if (p.name == "note_head.weight")
        std::ranges::copy(file.at(p.name).span<float>(), to);
      else
        source.read(p, [&](int64_t first, std::span<const float> values) { std::ranges::copy(values, to + first); });
    }
  }
  Tensor weights() { return Tensor::of(flat.data(), {layout->size()}); }

  fs::path folder;
  nlohmann::json json;
  SafetensorsFile file;
  NoteTable notes;
  PairTable pairs;
  RunConfig config;
  ExportType type;
  std::optional<ParameterLayout> layout;
  std::vector<float> flat;
};

// |found − expected| / |expected| of the rows that are there; rows of `found` beyond them must be zero.
double difference(std::span<const float> found, Tensor expected) {
  double sum = 0, size = 0;
  const auto y = expected.span<float>();
  for (size_t i = 0; i < found.size(); ++i) {
    const double wanted = i < y.size() ? y[i] : 0.0;
    sum += (found[i] - wanted) * (found[i] - wanted);
    size += wanted * wanted;
  }
  return std::sqrt(sum / size);
}

class HuggingFaceGolden : public testing::TestWithParam<const char*> {};

TEST_P(HuggingFaceGolden, LogitsAndVectors) {
  Golden golden(GetParam());
  std::vector<NoteExample> examples;
  for (int32_t note = 0; note < 4; ++note) examples.push_back({note, Task::category, {}});
  PackedBatch batch;
  pack(golden.notes, examples, true, batch);
  ModelInput input;
  input.set(batch, golden.layout->vocabulary(), true);
  const Weights weights(*golden.layout, golden.weights());
  Transformer transformer(golden.config.model, DType::f32);
  Stream stream;
  Arena arena(16 << 20);
  const Tensor hidden = transformer.forward(stream, weights, input, arena, false);

  const Tensor z = arena.allocate(DType::f32, {4, 6}), norm = arena.allocate(DType::f32, {4});
  note_vectors(stream, hidden, input.note_places(), weights.note_projection, z, norm, arena);
  EXPECT_LT(difference(z.span<float>(), golden.file.at("vectors")), tolerance);

  std::vector<float> logits;
  const int64_t dim = golden.config.model.dim;
  for (const int32_t place : input.label_places().span<int32_t>())
    for (int64_t t = 0; t <= tokens; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < dim; ++c)
        sum += double(hidden.as<float>()[place * dim + c]) * weights.head.as<float>()[t * dim + c];
      logits.push_back(static_cast<float>(sum));
    }
  EXPECT_EQ(std::ssize(logits), golden.file.at("logits").size());
  EXPECT_LT(difference(logits, golden.file.at("logits")), tolerance);
}

// On all ranks of mpirun, as one tensor group too.
TEST_P(HuggingFaceGolden, LossAndGradients) {
  Communicator world = Communicator::world();
  Golden golden(GetParam());
  for (int tensor = 1; tensor <= std::min(2, world.size()); ++tensor) {
    golden.config.parallel.tensor = tensor;
    Mesh mesh(world, tensor);
    TrainingState state(golden.config, golden.notes.prompt, mesh);
    state.shards.for_runs(state.layout, [&](const ShardMap::Run& run) {
      const Tensor whole = golden.layout->at(run.parameter.name).view(golden.weights());
      for_row_runs(run.parameter, run.first, run.count, [&](int64_t from, int64_t at, int64_t elements) {
        std::copy_n(whole.as<float>() + from, elements, state.optimizer.weights().as<float>() + run.at + at);
      });
    });
    state.weights.refresh();
    TrainingStep step(golden.config, golden.notes, golden.pairs, mesh);
    Stream stream;
    const StepResult result = step.run(stream, 0, state, state.tau(stream));
    const auto losses = golden.file.at("losses").span<float>();
    EXPECT_NEAR(result.loss, losses[0], tolerance * losses[0]);
    EXPECT_NEAR(result.contrastive, losses[1], tolerance * losses[1]);
    EXPECT_NEAR(result.token, losses[2], tolerance * losses[2]);

    std::vector<float> gradients(golden.flat.size());
    const Tensor flat = Tensor::of(gradients.data(), {golden.layout->size()});
    test::put_together(state, *golden.layout, state.gradients.pieces()[0], flat);
    for (const Parameter& p : golden.layout->all()) {
      const Tensor expected = golden.file.at("gradient." + p.name);
      // τ's gradient is a sum of terms that nearly cancel (tests/training/test_step.cpp): they round, at up to 2 · e^τ.
      const double terms = 2 * std::exp(1.0) / (1 + golden.config.loss.alpha);
      const double size = p.kind == ParameterKind::temperature ? terms / std::abs(*expected.as<float>()) : 1;
      EXPECT_LT(difference(p.view(flat).span<float>(), expected), tolerance * size)
          << p.name << ", tensor groups of " << tensor;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, HuggingFaceGolden, testing::Values("llama", "mistral", "qwen2", "llama3_tied"),
                         [](const auto& info) { return std::string(info.param); });

TEST(HuggingFaceTypes, AreThoseOfTheFiles) {
  EXPECT_EQ(Golden("llama").type, ExportType::f32);
  EXPECT_EQ(Golden("mistral").type, ExportType::bf16);
  EXPECT_EQ(Golden("qwen2").type, ExportType::f16);
  EXPECT_EQ(Golden("llama3_tied").type, ExportType::f32);
}

}  // namespace
}  // namespace notellm

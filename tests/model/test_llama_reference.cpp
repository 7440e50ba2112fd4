// A real pretrained LLaMA (grouped queries, tied head) against what transformers computes in f32: the hidden states
// after the final norm, the logits, the loss of next-token prediction.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data_pipeline/tokenizer.h"
#include "losses/token_loss.h"
#include "model/generator.h"
#include "model/transformer.h"
#include "runtime/files.h"
#include "tests/support/shared.h"
#include "tests/support/tiny_model.h"
#include "training/checkpoint.h"
#include "training/hugging_face.h"

namespace notellm {
namespace {

constexpr const char* model_folder = "models/stories260K";

// The reference numbers are rounded to 5 places. Both programs compute in f32: the values are at most 10.3 in size,
// sums of up to 172 terms round to about sqrt(172) · 2^-24 = 8e-7 of that, and some 30 such sums follow each other (5
// layers of 6 products): sqrt(30) · 8e-7 · 10.3 = 4.5e-5 each.
constexpr double tolerance = 5e-6 + 2 * 4.5e-5;
// The loss is a mean of log probabilities, a sum of 64 products each, at sizes up to about 15; rounded to 6 places.
constexpr double loss_tolerance = 1e-5;

struct Llama {
  nlohmann::json reference = nlohmann::json::parse(read_file(test::shared_path(model_folder) / "reference.json"));
  std::vector<int32_t> tokens = reference.at("tokens");
  ModelConfig config = read_hugging_face_config(test::shared_path(model_folder)).config;
  ParameterLayout layout{config, 512};
  test::FlatWeights parameters{layout};

  Llama() { load_weights(test::shared_path(model_folder), layout, false, parameters.flat); }

  // The tokens in segments that end at `ends`, each the prefix of the next. The last row is a note row; every row
  // before it predicts the token that follows.
  PackedBatch batch(const std::vector<int32_t>& ends) const {
    PackedBatch b;
    b.tokens = tokens;
    b.positions.resize(tokens.size());
    std::iota(b.positions.begin(), b.positions.end(), 0);
    int32_t begin = 0;
    for (int32_t end : ends) {
      b.segments.push_back({begin, end, static_cast<int32_t>(b.segments.size()) - 1});
      begin = end;
    }
    b.note_rows = {static_cast<int32_t>(tokens.size()) - 1};
    b.note_ids = {1};
    for (size_t r = 0; r + 1 < tokens.size(); ++r) {
      b.label_rows.push_back(static_cast<int32_t>(r));
      b.labels.push_back(tokens[r + 1]);
    }
    return b;
  }
};

void expect_last_row(const Llama& llama, const float* hidden) {
  const auto& expected = llama.reference.at("final_norm_hidden_last_first16");
  const auto& logits = llama.reference.at("last_logits_first16");
  ASSERT_EQ(expected.size(), 16u);
  ASSERT_EQ(logits.size(), 16u);
  for (int i = 0; i < 16; ++i) {
    EXPECT_NEAR(hidden[i], expected[i].get<double>(), tolerance) << "hidden " << i;
    const float* row = llama.parameters.weights.head.as<float>() + i * llama.config.dim;
    double logit = 0;
    for (int c = 0; c < llama.config.dim; ++c) logit += double(hidden[c]) * row[c];
    EXPECT_NEAR(logit, logits[i].get<double>(), tolerance) << "logit " << i;
  }
}

double next_token_loss(const Llama& llama, const PackedBatch& batch, const ModelInput& input, Tensor hidden,
                       Arena& arena) {
  Stream stream;
  const test::FlatWeights gradients(llama.layout);
  const Tensor d_hidden = arena.allocate(DType::f32, {hidden.rows(), hidden.cols()});
  const Tensor labels = Tensor::of(batch.labels.data(), {static_cast<int64_t>(batch.labels.size())});
  const Tensor loss = arena.allocate(DType::f32, {labels.rows()});
  Communicator alone = Communicator::self();
  token_loss(stream, alone, hidden, input.label_places(), labels, llama.parameters.weights.head, 512, 1, d_hidden,
             gradients.weights.head, loss, arena);
  const auto losses = loss.span<float>();
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(batch.labels.size());
}

class LlamaReference : public testing::TestWithParam<std::vector<int32_t>> {};

TEST_P(LlamaReference, HiddenLogitsAndLoss) {
  NOTELLM_NEEDS_SHARED(model_folder);
  const Llama llama;
  const PackedBatch batch = llama.batch(GetParam());
  Transformer transformer(llama.config, DType::f32);
  Stream stream;
  Arena arena(16 << 20);
  ModelInput input;
  input.set(batch, 512, true);
  ASSERT_EQ(input.hidden_rows(), 16);
  const Tensor hidden = transformer.forward(stream, llama.parameters.weights, input, arena, false);
  expect_last_row(llama, hidden.as<float>() + input.note_places().as<int32_t>()[0] * llama.config.dim);
  EXPECT_NEAR(next_token_loss(llama, batch, input, hidden, arena), llama.reference.at("loss_next_token").get<double>(),
              loss_tolerance);
}

TEST_P(LlamaReference, NoteRowAlone) {
  NOTELLM_NEEDS_SHARED(model_folder);
  const Llama llama;
  const PackedBatch batch = llama.batch(GetParam());
  Transformer transformer(llama.config, DType::f32);
  Stream stream;
  Arena arena(16 << 20);
  ModelInput input;
  input.set(batch, 512, false);
  ASSERT_EQ(input.hidden_rows(), 1);
  expect_last_row(llama, transformer.forward(stream, llama.parameters.weights, input, arena, false).as<float>());
}

INSTANTIATE_TEST_SUITE_P(Cuts, LlamaReference,
                         testing::Values(std::vector<int32_t>{16}, std::vector<int32_t>{7, 16},
                                         std::vector<int32_t>{1, 16}, std::vector<int32_t>{15, 16}),
                         [](const auto& info) {
                           return info.param.size() == 1 ? std::string("Whole")
                                                         : "PrefixOf" + std::to_string(info.param[0]);
                         });

// Greedy decoding from BOS alone gives the text of an independent program, and of transformers.
TEST(LlamaReference, GreedyText) {
  NOTELLM_NEEDS_SHARED(model_folder);
  const Llama llama;
  const Tokenizer tokenizer = Tokenizer::load(test::shared_path(model_folder) / "tokenizer.model");
  PackedBatch bos;
  bos.tokens = {*tokenizer.bos()};
  bos.positions = {0};
  bos.segments = {{0, 1, -1}};
  bos.note_rows = bos.label_rows = {0};
  bos.note_ids = {0};
  bos.labels = {tokenizer.eos()};
  Generator generator(llama.config, DType::f32, {.max_tokens = 200, .sampling = {}});
  Stream stream;
  const std::vector<Generated> outputs = generator.run(stream, llama.parameters.weights, bos, {tokenizer.eos(), 512});
  const std::string expected = read_file(test::shared_path(model_folder) / "greedy200.txt");
  const std::string text = tokenizer.decode(outputs[0].tokens, Place::begins);
  EXPECT_EQ(text, expected.substr(0, expected.find_last_not_of('\n') + 1));
}

}  // namespace
}  // namespace notellm

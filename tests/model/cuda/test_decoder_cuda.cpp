// Decoding on a GPU: logits token by token against the double model's, outputs against the CPU's; alone, and as a
// tensor group of all ranks.
#include <gtest/gtest.h>

#include <cmath>

#include "model/generator.h"
#include "tests/support/reference_model.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

// Sizes at which the kernels take their wide paths: rows of whole packs, a head of 64.
ModelConfig config() {
  ModelConfig c;
  c.dim = 32;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 64;
  c.ffn = 48;
  c.note_dim = 16;
  c.context = 64;
  c.init.embedding_std = 0.5;
  c.init.matrix_std = 0.15;
  return c;
}

struct Model {
  ModelConfig c = config();
  test::TinyModel whole{c};
  Communicator world = Communicator::world();
  ParameterLayout layout{c, padded_vocabulary(40), {world.rank(), world.size()}};
  Buffer memory;
  Weights weights;

  Model()
      : memory(on_device(Device::cuda, part(layout, c))), weights(layout, memory.tensor(DType::f32, {layout.size()})) {}
  static Buffer part(const ParameterLayout& layout, const ModelConfig& c) {
    Buffer host(layout.size() * 4);
    test::initialize_flat(layout, c.init, 1, 40, 39, host.tensor(DType::f32, {layout.size()}));
    return host;
  }
  Communicator* tensor() { return world.size() > 1 ? &world : nullptr; }
};

std::vector<NoteExample> prompts(const NoteTable& notes) {
  std::vector<NoteExample> examples;
  for (int32_t i = 0; i < notes.size(); ++i) examples.push_back({i, Task::category, {}, Until::guidance});
  return examples;
}

// As test_decoder.cpp, but sums have up to 256 terms instead of 16, which grows what rounding gives by a factor of 4.
constexpr double hidden_tolerance = 4e-5;

TEST(CudaDecoder, EqualsTheDoubleModelTokenByToken) {
  const test::TinyData data = test::tiny_data(4);
  Model model;
  const test::ReferenceWeights reference(model.whole.layout, model.whole.parameters.flat);
  const test::Matrix& head = reference.of.at("model.embed_tokens.weight");
  Stream stream(Device::cuda);
  Decoder decoder(model.c, DType::f32, Device::cuda, model.tensor());
  PackedBatch batch;
  pack(data.notes, prompts(data.notes), true, batch);
  Buffer vectors(4 * 16 * 4);
  decoder.begin(stream, model.weights, batch, 3, vectors.tensor(DType::f32, {4, 16}));
  std::vector<std::vector<int32_t>> sequences(4);
  std::vector<int32_t> open{0, 1, 2, 3};
  for (int32_t i : open) {
    int32_t first_label;
    compose(data.notes, {i, Task::category, {}, Until::guidance}, sequences[i], &first_label);
  }
  for (int step = 0;; ++step) {
    const Tensor logits = decoder.logits();
    std::vector<float> values(static_cast<size_t>(logits.size()));
    copy(stream, logits, Tensor::of(values.data(), {logits.rows(), logits.cols()}));
    stream.synchronize();
    for (size_t i = 0; i < open.size(); ++i) {
      const test::Row expected =
          test::times(head, test::reference_hidden(model.c, reference, sequences[open[i]]).back());
      for (int64_t v = 0; v < logits.cols(); ++v) {
        const int64_t token = model.world.rank() * logits.cols() + v;
        double sum = 0;
        for (const double w : head[token]) sum += std::fabs(w);
        ASSERT_NEAR(values[i * logits.cols() + v], expected[token], hidden_tolerance * sum + 1e-6)
            << "step " << step << ", note " << open[i] << ", token " << token;
      }
    }
    if (step == 3) break;
    if (step == 1) open.erase(open.begin() + 1);
    std::vector<int32_t> tokens;
    for (const int32_t note : open) sequences[note].push_back(tokens.emplace_back(3 + (note * 7 + step * 5) % 36));
    decoder.step(stream, open, tokens);
  }
  for (int64_t i = 0; i < 4; ++i) {
    double squares = 0;
    for (int64_t c = 0; c < 16; ++c) squares += std::pow(static_cast<float*>(vectors.data())[i * 16 + c], 2);
    EXPECT_NEAR(squares, 1, 1e-5);
  }
}

TEST(CudaGenerator, OutputsAreTheCpus) {
  const test::TinyData data = test::tiny_data(4);
  Model model;
  PackedBatch batch;
  pack(data.notes, prompts(data.notes), true, batch);
  const TokenTrie closed({{5, 6}, {5, 6, 7, 30}, {9}, {30, 31}}, 2);
  const GenerationConfig greedy{.max_tokens = 4, .sampling = {}},
      drawn{.max_tokens = 4, .greedy = false, .sampling = {.temperature = 2, .top_k = 20, .top_p = 0.9f}, .seed = 3};
  for (const GenerationConfig& config : {greedy, drawn})
    for (const TokenTrie* only : {static_cast<const TokenTrie*>(nullptr), &closed}) {
      const OutputRules rules{2, 40, only};
      Stream stream(Device::cuda), host;
      Generator on_gpu(model.c, DType::f32, config, Device::cuda, model.tensor()), on_cpu(model.c, DType::f32, config);
      const auto outputs = on_gpu.run(stream, model.weights, batch, rules),
                 expected = on_cpu.run(host, model.whole.parameters.weights, batch, rules);
      for (size_t i = 0; i < outputs.size(); ++i) EXPECT_EQ(outputs[i].tokens, expected[i].tokens) << i;
    }
}

}  // namespace
}  // namespace notellm

// Decoding with a cache against the double-precision model of tests/support, which computes each whole sequence anew;
// alone, and as a tensor group of all ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/convert.h"
#include "model/generator.h"
#include "tests/support/expect_error.h"
#include "tests/support/reference_model.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

// Of hidden states, as derived in test_transformer.cpp.
constexpr double hidden_tolerance = 1e-5;

ModelConfig config_with(int layers, int kv_heads) {
  ModelConfig c = test::tiny_model_config(layers, kv_heads);
  c.ffn = 12;  // divides by 4 ranks
  c.qkv_bias = kv_heads == 2;
  return c;
}

// Biases start as 0; these are a pure function of layer, kind and row of the whole.
void set_biases(const ParameterLayout& layout, Tensor flat) {
  for (const Parameter& p : layout.all())
    for (int64_t r = 0; p.kind == ParameterKind::bias && r < p.rows; ++r)
      p.view(flat).as<float>()[r] = 0.5f * static_cast<float>(std::sin(p.row_begin + r + p.name[13] + 5 * p.name[25]));
}
test::TinyModel whole_model(const ModelConfig& c, unsigned seed) {
  test::TinyModel model(c, seed);
  set_biases(model.layout, model.parameters.flat);
  return model;
}

// The whole model in double, and the rank's part of it in f32 or bf16.
struct Model {
  ModelConfig config;
  test::TinyModel whole;
  test::ReferenceWeights reference;
  Communicator world = Communicator::world();
  ParameterLayout layout;
  test::FlatWeights part;

  explicit Model(const ModelConfig& c, unsigned seed = 1)
      : config(c),
        whole(whole_model(c, seed)),
        reference(whole.layout, whole.parameters.flat),
        layout(c, padded_vocabulary(40), {world.rank(), world.size()}),
        part(layout) {
    test::initialize_flat(layout, c.init, seed, 40, 39, part.flat);
    set_biases(layout, part.flat);
  }
  Communicator* tensor() { return world.size() > 1 ? &world : nullptr; }

  std::vector<double> logits(const std::vector<int32_t>& tokens) const {
    return test::times(reference.of.at("model.embed_tokens.weight"),
                       test::reference_hidden(config, reference, tokens).back());
  }
  // How far a logit may be off where hidden states are off by hidden_tolerance.
  double tolerance(int32_t token) const {
    double sum = 0;
    for (const double w : reference.of.at("model.embed_tokens.weight")[token]) sum += std::fabs(w);
    return hidden_tolerance * sum + 1e-6;
  }
};

std::vector<NoteExample> prompts_of(const NoteTable& notes) {
  std::vector<NoteExample> examples;
  for (int32_t i = 0; i < notes.size(); ++i) {
    NoteExample e{i, i % 3 == 1 ? Task::hashtags : Task::category, {}, Until::guidance};
    if (e.task == Task::hashtags) e.topics.resize(1 + i % 2);  // only their number counts
    examples.push_back(e);
  }
  return examples;
}

std::vector<int32_t> prompt_of(const NoteTable& notes, const NoteExample& example) {
  std::vector<int32_t> tokens;
  int32_t first_label;
  compose(notes, example, tokens, &first_label);
  EXPECT_EQ(first_label + 1, std::ssize(tokens));
  return tokens;
}

PackedBatch packed(const NoteTable& notes, const std::vector<NoteExample>& examples, bool share) {
  PackedBatch batch;
  pack(notes, examples, share, batch);
  return batch;
}

// Rows of logits of all ranks' parts of the vocabulary, against the double model's.
void expect_logits(Model& model, Decoder& decoder, const std::vector<std::vector<int32_t>>& sequences) {
  const Tensor logits = decoder.logits();
  ASSERT_EQ(logits.rows(), std::ssize(sequences));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<double> expected = model.logits(sequences[i]);
    for (int64_t c = 0; c < logits.cols(); ++c) {
      const auto token = static_cast<int32_t>(decoder.part().index * logits.cols() + c);
      ASSERT_NEAR(logits.as<float>()[static_cast<int64_t>(i) * logits.cols() + c], expected[token],
                  model.tolerance(token))
          << "row " << i << " of " << sequences.size() << ", token " << token;
    }
  }
}

TEST(Decoder, EqualsTheDoubleModelTokenByToken) {
  const test::TinyData data = test::tiny_data(7);
  const auto examples = prompts_of(data.notes);
  for (const auto& [layers, kv_heads] : {std::pair{1, 4}, {2, 2}, {3, 1}})
    for (const bool share : {false, true}) {
      SCOPED_TRACE(fmt::format("{} layers, {} kv heads, shared {}", layers, kv_heads, share));
      Model model(config_with(layers, kv_heads));
      Decoder decoder(model.config, DType::f32, Device::cpu, model.tensor());
      Stream stream;
      decoder.begin(stream, model.part.weights, packed(data.notes, examples, share), 5);
      std::vector<std::vector<int32_t>> sequences;
      std::vector<int32_t> open;
      for (const NoteExample& e : examples) sequences.push_back(prompt_of(data.notes, e)), open.push_back(e.note);
      expect_logits(model, decoder, sequences);
      for (int step = 0; step < 5; ++step) {
        // Every second step one note less.
        if (step % 2 == 1) open.erase(open.begin() + step % std::ssize(open));
        std::vector<int32_t> tokens;
        std::vector<std::vector<int32_t>> asked;
        for (const int32_t note : open) {
          tokens.push_back(3 + (note * 7 + step * 5) % 36);
          sequences[note].push_back(tokens.back());
          asked.push_back(sequences[note]);
        }
        decoder.step(stream, open, tokens);
        expect_logits(model, decoder, asked);
      }
    }
}

// bf16: off by at most twice what the forward pass of whole sequences in bf16 is off.
TEST(Decoder, Bf16IsAsExactAsTheForwardPass) {
  Model model(config_with(2, 2));
  if (model.world.size() > 1) GTEST_SKIP() << "on one rank";
  const test::TinyData data = test::tiny_data(8);
  Stream stream;
  Buffer memory(model.layout.size() * 2);
  const Tensor narrow = memory.tensor(DType::bf16, {model.layout.size()});
  convert(stream, model.part.flat, narrow);
  convert(stream, narrow, model.whole.parameters.flat);  // what both compute with
  const test::ReferenceWeights reference(model.whole.layout, model.whole.parameters.flat);
  const Weights weights(model.layout, narrow);
  const auto examples = prompts_of(data.notes);
  Decoder decoder(model.config, DType::bf16), whole(model.config, DType::bf16);
  decoder.begin(stream, weights, packed(data.notes, examples, true), 4);
  double of_steps = 0, of_passes = 0;
  std::vector<std::vector<int32_t>> sequences;
  for (const NoteExample& e : examples) sequences.push_back(prompt_of(data.notes, e));
  const auto worst = [&](const float* row, const std::vector<int32_t>& tokens, double& most) {
    const test::Row expected = test::times(reference.of.at("model.embed_tokens.weight"),
                                           test::reference_hidden(model.config, reference, tokens).back());
    for (size_t v = 0; v < expected.size(); ++v) most = std::max(most, std::fabs(row[v] - expected[v]));
  };
  std::vector<int32_t> all(sequences.size()), tokens(sequences.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  for (int step = 0; step < 4; ++step) {
    for (size_t i = 0; i < all.size(); ++i) sequences[i].push_back(tokens[i] = 3 + (all[i] * 5 + step * 11) % 36);
    decoder.step(stream, all, tokens);
    for (size_t i = 0; i < all.size(); ++i) {
      worst(decoder.logits().as<float>() + static_cast<int64_t>(i) * 64, sequences[i], of_steps);
      PackedBatch alone;
      alone.tokens = sequences[i];
      const auto n = static_cast<int32_t>(sequences[i].size());
      for (int32_t t = 0; t < n; ++t) alone.positions.push_back(t);
      alone.segments = {{0, n, -1}};
      alone.note_rows = alone.label_rows = {n - 1};
      alone.note_ids = {0};
      alone.labels = {2};
      whole.begin(stream, weights, alone, 0);
      worst(whole.logits().as<float>(), sequences[i], of_passes);
    }
  }
  EXPECT_GT(of_passes, 1e-3);  // it is bf16
  EXPECT_LT(of_steps, 2 * of_passes);
}

TEST(Decoder, VectorsAreThoseOfTheNotes) {
  const test::TinyData data = test::tiny_data(5);
  Model model(config_with(2, 2));
  Decoder decoder(model.config, DType::f32, Device::cpu, model.tensor());
  Stream stream;
  std::vector<NoteExample> examples;
  for (int32_t i = 0; i < 5; ++i) examples.push_back({i, Task::category, {}, Until::guidance});
  Buffer memory(5 * 6 * 4);
  const Tensor vectors = memory.tensor(DType::f32, {5, 6});
  decoder.begin(stream, model.part.weights, packed(data.notes, examples, true), 1, vectors);
  for (int32_t i = 0; i < 5; ++i) {
    std::vector<int32_t> tokens;
    int32_t first_label;
    const int32_t note_row = compose(data.notes, {i, Task::category, {}, Until::note}, tokens, &first_label);
    test::Row z = test::times(model.reference.of.at("note_head.weight"),
                              test::reference_hidden(model.config, model.reference, tokens)[note_row]);
    const double norm = std::sqrt(test::dot(z, z));
    // Hidden states are off by 1e-5, the projection's 12 terms of 0.3 add up, and n is of a size of 1.
    for (int c = 0; c < 6; ++c) EXPECT_NEAR(vectors.as<float>()[i * 6 + c], z[c] / norm, 2e-5 * 12 * 0.3 / norm) << i;
  }
}

TEST(Decoder, Errors) {
  const test::TinyData data = test::tiny_data(3);
  Model model(config_with(1, 2));
  Stream stream;
  Decoder decoder(model.config, DType::f32, Device::cpu, model.tensor());
  PackedBatch batch;
  pack(data.notes, std::vector<NoteExample>{{1, Task::category, {}}}, true, batch);  // with its output
  EXPECT_ERROR(internal, "label row", decoder.begin(stream, model.part.weights, batch, 1));
  pack(data.notes, std::vector<NoteExample>{{1, Task::category, {}, Until::note}}, true, batch);
  EXPECT_ERROR(internal, "0 label rows of 1 notes", decoder.begin(stream, model.part.weights, batch, 1));
  const PackedBatch good = packed(data.notes, prompts_of(data.notes), true);
  decoder.begin(stream, model.part.weights, good, 1);
  EXPECT_ERROR(internal, "2 tokens of 1 notes",
               decoder.step(stream, std::vector<int32_t>{0}, std::vector<int32_t>{3, 4}));
  decoder.step(stream, std::vector<int32_t>{2}, std::vector<int32_t>{3});
  EXPECT_EQ(decoder.room(2), 0);
  EXPECT_EQ(decoder.room(1), 1);
  EXPECT_ERROR(internal, "note 2 has no room", decoder.step(stream, std::vector<int32_t>{2}, std::vector<int32_t>{3}));
  // Room that the context does not leave takes no memory.
  Decoder enough(model.config, DType::f32, Device::cpu, model.tensor()),
      more(model.config, DType::f32, Device::cpu, model.tensor());
  enough.begin(stream, model.part.weights, good, model.config.context);
  more.begin(stream, model.part.weights, good, 1 << 20);
  EXPECT_EQ(more.cache_bytes(), enough.cache_bytes());
  EXPECT_EQ(more.room(0), enough.room(0));
  ModelConfig small = model.config;
  small.context = 8;
  Decoder short_decoder(small, DType::f32, Device::cpu, model.tensor());
  EXPECT_ERROR(data, "more than the model's context of 8", short_decoder.begin(stream, model.part.weights, good, 1));
}

// Greedy outputs by the double model. The best logit must stand out, or rounding could choose.
Generated expected_output(const Model& model, std::vector<int32_t> tokens, const GenerationConfig& config,
                          const OutputRules& rules, int context) {
  Generated output;
  int32_t node = TokenTrie::root;
  while (!output.ended && std::ssize(output.tokens) < config.max_tokens && std::ssize(tokens) <= context) {
    const std::vector<double> logits = model.logits(tokens);
    std::vector<std::pair<double, int32_t>> ranked;
    for (int32_t v = 0; v < rules.vocabulary; ++v) {
      const auto allowed = rules.closed ? rules.closed->candidates(node) : std::span<const int32_t>();
      if (!rules.closed || std::ranges::find(allowed, v) != allowed.end()) ranked.push_back({-logits[v], v});
    }
    std::ranges::sort(ranked);
    const int32_t token = ranked[0].second;
    if (ranked.size() > 1) {
      EXPECT_GT(ranked[1].first - ranked[0].first, model.tolerance(token) + model.tolerance(ranked[1].second));
    }
    if (token == rules.eos) {
      output.ended = true;
      break;
    }
    output.tokens.push_back(token);
    tokens.push_back(token);
    if (rules.closed) {
      node = rules.closed->next(node, token);
      const auto rest = rules.closed->candidates(node);
      output.ended = rest.size() == 1 && rest[0] == rules.eos;
    }
  }
  return output;
}

struct Generation {
  test::TinyData data = test::tiny_data(9);
  std::vector<NoteExample> examples = prompts_of(data.notes);
  Model model{config_with(2, 2), 3};
  GenerationConfig config{.max_tokens = 6, .sampling = {}};
  Stream stream;

  std::vector<Generated> run(const std::vector<NoteExample>& of, const OutputRules& rules) {
    Generator generator(model.config, DType::f32, config, Device::cpu, model.tensor());
    return generator.run(stream, model.part.weights, packed(data.notes, of, true), rules);
  }
  void expect_greedy(const OutputRules& rules) {
    const std::vector<Generated> outputs = run(examples, rules);
    ASSERT_EQ(outputs.size(), examples.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Generated expected = expected_output(model, prompt_of(data.notes, examples[i]), config, rules, 64);
      EXPECT_EQ(outputs[i].tokens, expected.tokens) << i;
      EXPECT_EQ(outputs[i].ended, expected.ended) << i;
      EXPECT_EQ(run({examples[i]}, rules)[0].tokens, expected.tokens) << i << " alone";
    }
  }
};

TEST(Generator, GreedyIsThatOfTheDoubleModelInAnyBatch) {
  Generation g;
  g.expect_greedy({2, 40});
}

// Of equal logits the first token, also where the ranks' parts of the vocabulary tie.
TEST(Generator, TiesGoToTheFirst) {
  Generation g;
  std::ranges::fill(g.model.part.weights.final_norm.span<float>(), 0.0f);
  EXPECT_EQ(g.run(g.examples, {2, 40})[3].tokens, std::vector<int32_t>(6, 0));
}

// The end is a token that some notes choose: they leave the batch, the others go on.
TEST(Generator, EndsAtEos) {
  Generation g;
  const std::vector<Generated> endless = g.run(g.examples, {2, 40});
  const int32_t eos = endless[4].tokens[2];
  const OutputRules rules{eos, 40};
  g.expect_greedy(rules);
  const std::vector<Generated> outputs = g.run(g.examples, rules);
  EXPECT_TRUE(outputs[4].ended);
  int ended = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    ended += outputs[i].ended;
    EXPECT_TRUE(std::ranges::equal(outputs[i].tokens, std::span(endless[i].tokens).first(outputs[i].tokens.size())));
    EXPECT_EQ(outputs[i].ended, outputs[i].tokens.size() < 6);
  }
  EXPECT_LT(ended, 9);
}

TEST(Generator, ClosedSetIsNeverLeft) {
  Generation g;
  const std::vector<std::vector<int32_t>> allowed = {{5, 6}, {5, 6, 7, 30}, {9}, {30, 31, 32, 33, 34, 38}, {38, 3}};
  const TokenTrie closed(allowed, 2);
  EXPECT_EQ(closed.longest(), 6);
  const OutputRules rules{2, 40, &closed};
  g.expect_greedy(rules);
  g.config.greedy = false;
  g.config.sampling.temperature = 20;  // anything goes
  std::vector<int> seen(allowed.size());
  for (g.config.seed = 1; g.config.seed <= 20; ++g.config.seed)
    for (const Generated& output : g.run(g.examples, rules)) {
      const auto found = std::ranges::find(allowed, output.tokens);
      ASSERT_NE(found, allowed.end());
      EXPECT_TRUE(output.ended);
      ++seen[found - allowed.begin()];
    }
  for (const int times : seen) EXPECT_GT(times, 0);
  g.config.max_tokens = 5;
  EXPECT_ERROR(data, "has 6 tokens, but at most 5", g.run(g.examples, rules));
}

TEST(Generator, DrawsArePureFunctionsOfSeedNoteAndPlace) {
  Generation g;
  g.config.greedy = false;
  g.config.sampling = {.temperature = 1.5f, .top_k = 8, .top_p = 0.95f};
  const OutputRules rules{2, 40};
  const std::vector<Generated> all = g.run(g.examples, rules), again = g.run(g.examples, rules);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].tokens, again[i].tokens);
    EXPECT_EQ(g.run({g.examples[i]}, rules)[0].tokens, all[i].tokens) << i;
  }
  EXPECT_NE(all[0].tokens, all[3].tokens);
  g.config.seed = 2;
  const std::vector<Generated> other = g.run(g.examples, rules);
  int same = 0;
  for (size_t i = 0; i < all.size(); ++i) same += all[i].tokens == other[i].tokens;
  EXPECT_LT(same, 3);
  g.config.sampling = {.temperature = 1e-3f};
  const std::vector<Generated> cold = g.run(g.examples, rules);
  g.config.greedy = true;
  const std::vector<Generated> greedy = g.run(g.examples, rules);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(cold[i].tokens, greedy[i].tokens) << i;
}

TEST(Generator, OutputsEndAtTheContext) {
  Generation g;
  g.config.max_tokens = 30;
  ModelConfig small = g.model.config;
  small.context = 20;
  Generator generator(small, DType::f32, g.config, Device::cpu, g.model.tensor());
  const std::vector<Generated> outputs =
      generator.run(g.stream, g.model.part.weights, packed(g.data.notes, g.examples, true), {2, 40});
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<int32_t> prompt = prompt_of(g.data.notes, g.examples[i]);
    // The last token is predicted at the last position.
    if (!outputs[i].ended) {
      EXPECT_EQ(outputs[i].tokens.size() + prompt.size(), 21u);
    }
    EXPECT_EQ(outputs[i].tokens, expected_output(g.model, prompt, g.config, {2, 40}, 20).tokens) << i;
  }
  const TokenTrie closed({std::vector<int32_t>(20, 5)}, 2);
  EXPECT_ERROR(data, "leaves no room",
               generator.run(g.stream, g.model.part.weights, packed(g.data.notes, g.examples, true), {2, 40, &closed}));
}

TEST(Generator, Errors) {
  Generation g;
  const auto with = [&](auto change) {
    GenerationConfig c = g.config;
    change(c);
    const Generator generator(g.model.config, DType::f32, c, Device::cpu, g.model.tensor());
  };
  EXPECT_ERROR(usage, "0 tokens at most", with([](auto& c) { c.max_tokens = 0; }));
  EXPECT_ERROR(usage, "temperature 0", with([](auto& c) { c.sampling.temperature = 0; }));
  EXPECT_ERROR(usage, "top-k -1", with([](auto& c) { c.sampling.top_k = -1; }));
  EXPECT_ERROR(usage, "top-p 0,", with([](auto& c) { c.sampling.top_p = 0; }));
  g.model.part.weights.final_norm.as<float>()[3] = std::nanf("");
  EXPECT_ERROR(diverged, "logits of note 0 are no finite numbers", g.run(g.examples, {2, 40}));
  EXPECT_ERROR(internal, "without a sequence", TokenTrie({}, 2));
  EXPECT_ERROR(internal, "empty or has 2 in it", TokenTrie({{}}, 2));
  EXPECT_ERROR(internal, "empty or has 2 in it", TokenTrie({{3, 2}}, 2));
  EXPECT_ERROR(internal, "token 4 cannot follow", TokenTrie({{3}}, 2).next(0, 4));
}

}  // namespace
}  // namespace notellm

// The step against the double-precision model of tests/support: loss, every gradient by finite differences, and the
// same result for any number of ranks and micro-batches.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "tests/support/reference_model.h"
#include "tests/support/tiny_notes.h"
#include "tests/support/whole_model.h"
#include "training/step.h"

namespace notellm {
namespace {

RunConfig tiny_config() {
  RunConfig c;
  c.seed = 5;
  c.model.dim = 12;
  c.model.layers = 2;
  c.model.heads = 4;
  c.model.kv_heads = 2;
  c.model.head_dim = 4;
  c.model.ffn = 10;
  c.model.note_dim = 6;
  c.model.context = 64;
  c.model.init.embedding_std = 0.5;  // far from the flat beginning, so that every gradient is of a size
  c.model.init.matrix_std = 0.3;
  c.model.init.tau = 1;
  c.loss.alpha = 0.5;
  c.loss.sampling_correction = SamplingCorrection::logq;
  c.train.pairs_per_step = 8;
  return c;
}

// A step on some ranks, and its gradients put together from all of them: those of the whole model, on every rank.
struct TinyStep {
  RunConfig config;
  test::TinyData data;
  Mesh mesh;
  TrainingState state;
  TrainingStep step;
  StepResult result;
  ParameterLayout layout;  // of the whole model
  Buffer weight_memory, gradient_memory;
  Tensor weights, gradients;

  TinyStep(const RunConfig& c, Communicator& ranks, int notes = 12)
      : config(c),
        data(test::tiny_data(notes)),
        mesh(ranks, c.parallel.tensor),
        state(config, data.notes.prompt, mesh),
        step(config, data.notes, data.pairs, mesh),
        layout(c.model, padded_vocabulary(data.notes.prompt.vocabulary)),
        weight_memory(layout.size() * 4),
        gradient_memory(layout.size() * 4),
        weights(weight_memory.tensor(DType::f32, {layout.size()})),
        gradients(gradient_memory.tensor(DType::f32, {layout.size()})) {
    state.start_anew(config, data.notes.prompt);
    if (c.model.qkv_bias) randomize_biases();
    Stream stream;
    result = step.run(stream, 3, state, state.tau(stream));
    test::put_together(state, layout, state.optimizer.weights(), weights);
    std::vector<float> pieces(static_cast<size_t>(state.shards.size()));
    for (size_t i = 0; i < state.shards.pieces().size(); ++i)
      std::copy_n(state.gradients.pieces()[i].as<float>(), state.gradients.pieces()[i].size(),
                  pieces.data() + state.shards.pieces()[i].at);
    test::put_together(state, layout, Tensor::of(pieces.data(), {state.shards.size()}), gradients);
  }

  // They begin as zero, which would hide that one is not added; numbers of the whole element alone.
  void randomize_biases() {
    state.shards.for_runs(state.layout, [&](const ShardMap::Run& run) {
      if (run.parameter.kind != ParameterKind::bias) return;
      float* to = state.optimizer.weights().as<float>() + run.at;
      for_row_runs(run.parameter, run.first, run.count, [&](int64_t whole, int64_t at, int64_t elements) {
        for (int64_t i = 0; i < elements; ++i)
          to[at + i] = static_cast<float>(std::sin(double(run.parameter.name.size()) + 3.0 * double(whole + i)));
      });
    });
    state.weights.refresh();
  }
};

// Qwen2's biases, and frequencies of the rotary embedding of which one is kept, one mixed, one divided.
void with_options(RunConfig& c) {
  c.model.qkv_bias = true;
  c.model.head_dim = 6;
  c.model.rope_theta = 20;
  c.model.rope_scaling = {RopeScaling::llama3, 4, 0.5, 2, 16};
}

test::ReferenceLoss reference_of(const TinyStep& s, const test::ReferenceWeights& weights) {
  const Sampler sampler(s.data.notes, s.data.pairs, s.config.train.pairs_per_step, sampler_config(s.config));
  std::vector<NoteExample> examples;
  std::vector<double> log_q;
  for (int i = 0; i < s.config.train.pairs_per_step; ++i) {
    const auto slot = sampler.slot(3, i);
    for (const NoteExample& e : {slot.query, slot.target}) {
      examples.push_back(e);
      if (s.config.loss.sampling_correction == SamplingCorrection::logq)
        log_q.push_back(sampler.log_sampling_probability(e.note));
    }
  }
  return test::reference_loss(s.config.model, weights, s.data.notes, examples, log_q, s.config.loss.mask_known,
                              s.config.loss.alpha);
}

double norm_of(const Tensor& t) {
  double sum = 0;
  for (float x : t.span<float>()) sum += double(x) * x;
  return std::sqrt(sum);
}

// |a − b| / |b| of one parameter's gradients.
double difference(const Parameter& p, Tensor a, Tensor b) {
  const auto x = p.view(a).span<float>(), y = p.view(b).span<float>();
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (double(x[i]) - y[i]) * (double(x[i]) - y[i]);
  return std::sqrt(sum) / norm_of(p.view(b));
}

TEST(Step, LossEqualsTheDoubleModel) {
  Communicator self = Communicator::self();
  for (bool tied : {true, false})
    for (bool mask : {true, false})
      for (auto correction : {SamplingCorrection::none, SamplingCorrection::logq}) {
        RunConfig c = tiny_config();
        c.model.tied_head = tied;
        c.loss.mask_known = mask;
        c.loss.sampling_correction = correction;
        const TinyStep s(c, self);
        const test::ReferenceLoss reference = reference_of(s, test::ReferenceWeights(s.layout, s.weights));
        // f32 sums of some hundred terms: 2⁻²⁴ · √(terms) each, through about 10 ops
        EXPECT_NEAR(s.result.contrastive, reference.contrastive, 1e-5 * reference.contrastive);
        EXPECT_NEAR(s.result.token, reference.token, 1e-5 * reference.token);
        EXPECT_NEAR(s.result.loss, reference.loss, 1e-5 * reference.loss);
        EXPECT_GT(s.result.labels, 16);
      }
}

// Central differences in double: error h² · third derivative ≈ 1e-8 at h = 1e-4, and 1e-16 / h of rounding; the f32
// gradient's own error is about 1e-6 of its norm.
void expect_finite_differences(RunConfig c) {
  Communicator self = Communicator::self();
  c.model.tied_head = false;
  c.train.pairs_per_step = 3;
  const TinyStep s(c, self);
  test::ReferenceWeights weights(s.layout, s.weights);
  std::mt19937 random(3);
  for (const Parameter& p : s.layout.all()) {
    const float* gradient = p.view(s.gradients).as<float>();
    const double scale = norm_of(p.view(s.gradients)) / std::sqrt(p.size());
    const int64_t cols = p.cols ? p.cols : 1;
    ASSERT_GT(scale, 0) << p.name;
    const int checks = p.kind == ParameterKind::embedding ? 40 : 12;
    for (int check = 0; check < checks; ++check) {
      const int64_t i = std::uniform_int_distribution<int64_t>(0, p.size() - 1)(random);
      double& x = weights.of.at(p.name)[i / cols][i % cols];
      const double before = x, h = 1e-4;
      x = before + h;
      const double above = reference_of(s, weights).loss;
      x = before - h;
      const double below = reference_of(s, weights).loss;
      x = before;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * h), 1e-4 * scale + 1e-7) << p.name << " element " << i;
    }
  }
}

TEST(Step, GradientEqualsFiniteDifferences) { expect_finite_differences(tiny_config()); }

TEST(Step, GradientEqualsFiniteDifferencesWithBiasesAndScaledFrequencies) {
  RunConfig c = tiny_config();
  with_options(c);
  expect_finite_differences(c);
}

TEST(Step, SharedPrefixChangesNothingButTheWork) {
  Communicator self = Communicator::self();
  RunConfig c = tiny_config();
  const TinyStep shared(c, self);
  c.train.share_prefix = false;
  const TinyStep plain(c, self);
  EXPECT_NEAR(shared.result.loss, plain.result.loss, 1e-6 * plain.result.loss);
  for (const Parameter& p : shared.layout.all())
    EXPECT_LT(difference(p, shared.gradients, plain.gradients), 1e-5) << p.name;
  EXPECT_LT(shared.result.tokens, plain.result.tokens);
  EXPECT_EQ(shared.result.unshared_tokens, plain.result.tokens);
}

TEST(Step, SameForAnyRanksAndMicroBatches) {
  Communicator self = Communicator::self(), world = Communicator::world();
  const RunConfig c = tiny_config();
  const TinyStep alone(c, self);
  for (int micro_batch : {0, 3, 1}) {
    RunConfig split = c;
    split.train.micro_batch_pairs = micro_batch;
    const TinyStep together(split, world);
    EXPECT_NEAR(together.result.loss, alone.result.loss, 1e-5 * alone.result.loss) << micro_batch;
    EXPECT_EQ(together.result.labels, alone.result.labels);
    for (const Parameter& p : alone.layout.all())
      EXPECT_LT(difference(p, together.gradients, alone.gradients), 1e-5)
          << p.name << " micro-batches of " << micro_batch;
  }
}

// Every way of sharing the model out: the same loss and the same gradients. Ranks come from mpirun: with 4 of them
// 4 × 1, 2 × 2 and 1 × 4 (data × tensor).
TEST(Step, SameForAnyMeshShardingAndRecomputation) {
  Communicator self = Communicator::self(), world = Communicator::world();
  for (bool tied : {true, false}) {
    RunConfig c = tiny_config();
    if (!tied) with_options(c);
    c.model.tied_head = tied;
    c.model.layers = 4;  // more than are held at once
    c.model.ffn = 12;    // divides by 4
    const TinyStep alone(c, self);
    for (int tensor = 1; tensor <= world.size(); tensor *= 2)
      for (Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::parameters})
        for (Recompute recompute : {Recompute::none, Recompute::layer})
          for (int micro_batch : {0, 1}) {
            RunConfig split = c;
            split.parallel = {tensor, sharding, recompute};
            split.train.micro_batch_pairs = micro_batch;
            const TinyStep together(split, world);
            SCOPED_TRACE(fmt::format("{} ranks, tensor {}, sharding {}, recompute {}, micro-batches of {}, {} head",
                                     world.size(), tensor, static_cast<int>(sharding), static_cast<int>(recompute),
                                     micro_batch, tied ? "tied" : "untied"));
            ASSERT_NEAR(together.result.loss, alone.result.loss, 1e-5 * alone.result.loss);
            EXPECT_NEAR(together.result.token, alone.result.token, 1e-5 * alone.result.token);
            EXPECT_EQ(together.result.labels, alone.result.labels);
            for (const Parameter& p : alone.layout.all()) {
              // τ's gradient is the mean over rows of Σ_j (p_j − [j is the positive]) · e^τ · cosine, whose terms
              // nearly cancel: what rounds are the terms, which add up to at most 2 · e^τ.
              const double own_size = norm_of(p.view(alone.gradients)), terms = 2 * std::exp(1.0) / (1 + c.loss.alpha);
              const double size = p.kind == ParameterKind::temperature ? terms / own_size : 1;
              ASSERT_LT(difference(p, together.gradients, alone.gradients), 1e-5 * size) << p.name;
            }
          }
  }
}

TEST(Step, SameOnATensorGroupOverSeveralTiles) {
  Communicator self = Communicator::self(), world = Communicator::world();
  RunConfig c = tiny_config();
  c.model.ffn = 12;
  c.train.pairs_per_step = 55;
  const TinyStep alone(c, self, 70);
  c.parallel.tensor = world.size();
  const TinyStep together(c, world, 70);
  EXPECT_GT(alone.result.tokens, 2 * tile_rows);
  EXPECT_NE(alone.result.tokens % world.size(), world.size() == 1);  // shares of the last tile that differ
  EXPECT_NEAR(together.result.loss, alone.result.loss, 1e-5 * alone.result.loss);
  for (const Parameter& p : alone.layout.all())
    EXPECT_LT(difference(p, together.gradients, alone.gradients), 1e-5) << p.name;
}

TEST(Step, ReleasedCodeDividesTheEncodersContrastiveGradientByTheRanks) {
  Communicator self = Communicator::self(), world = Communicator::world();
  RunConfig c = tiny_config();
  c.loss.alpha = 0;
  const TinyStep exact(c, self);
  c.loss.gradient = ContrastiveGradient::released_code;
  const TinyStep released(c, world);
  for (const Parameter& p : exact.layout.all()) {
    const auto x = p.view(released.gradients).span<float>(), y = p.view(exact.gradients).span<float>();
    const double share = p.kind == ParameterKind::temperature ? 1 : 1.0 / world.size();
    const double scale = norm_of(p.view(exact.gradients));
    for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], share * y[i], 1e-5 * scale) << p.name;
  }
}

// The vectors do not see what stands after them: without the token loss, sequences may end at the note.
TEST(Step, WithoutTheTokenLossSequencesEndAtTheNote) {
  Communicator world = Communicator::world();
  RunConfig c = tiny_config();
  c.model.tied_head = false;
  c.loss.alpha = 1e-9;  // its gradient is less than a rounding
  const TinyStep whole(c, world);
  c.loss.alpha = 0;
  const TinyStep ended(c, world);
  EXPECT_GT(whole.result.labels, 0);
  EXPECT_EQ(ended.result.labels, 0);
  EXPECT_EQ(ended.result.token, 0);
  EXPECT_LE(ended.result.unshared_tokens + whole.result.labels, whole.result.unshared_tokens);
  EXPECT_NEAR(ended.result.loss, whole.result.loss, 1e-6 * whole.result.loss);
  for (const Parameter& p : whole.layout.all()) {
    if (p.name == "lm_head.weight") {
      EXPECT_EQ(norm_of(p.view(ended.gradients)), 0);
    } else {
      EXPECT_LT(difference(p, ended.gradients, whole.gradients), 1e-5) << p.name;
    }
  }
}

TEST(Step, SameBitsAgain) {
  Communicator world = Communicator::world();
  const TinyStep a(tiny_config(), world), b(tiny_config(), world);
  EXPECT_EQ(a.result.loss, b.result.loss);
  EXPECT_EQ(std::memcmp(a.gradients.data, b.gradients.data, a.gradients.bytes()), 0);
}

// bf16 rounds activations to 2⁻⁹: the gradient of the whole tiny model stays within a few per cent of the f32 one.
TEST(Step, Bf16IsCloseToFp32) {
  Communicator self = Communicator::self();
  RunConfig c = tiny_config();
  const TinyStep wide(c, self);
  c.precision = Precision::bf16;
  const TinyStep narrow(c, self);
  EXPECT_NEAR(narrow.result.loss, wide.result.loss, 0.02 * wide.result.loss);
  for (const Parameter& p : wide.layout.all())
    EXPECT_LT(difference(p, narrow.gradients, wide.gradients), 0.1) << p.name;
}

TEST(Step, TooFewPairsForTheRanks) {
  Communicator world = Communicator::world();
  if (world.size() == 1) return;
  RunConfig c = tiny_config();
  c.train.pairs_per_step = world.size() - 1;
  try {
    TinyStep s(c, world);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

TEST(Step, NoteLongerThanTheContext) {
  Communicator self = Communicator::self();
  RunConfig c = tiny_config();
  c.model.context = 12;
  try {
    TinyStep s(c, self);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::data);
    EXPECT_NE(std::string(error.what()).find("model.context"), std::string::npos);
  }
}

}  // namespace
}  // namespace notellm

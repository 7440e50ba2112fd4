// The learning-rate schedule at steps computed by hand, and the update against AdamW written down in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tests/support/tiny_model.h"
#include "training/optimizer.h"

namespace notellm {
namespace {

OptimizerConfig schedule(Schedule kind) {
  OptimizerConfig c;
  c.learning_rate = 0.8;
  c.warmup_steps = 4;
  c.schedule = kind;
  c.final_share = 0.25;
  return c;
}

TEST(LearningRate, WarmUpRisesByEqualParts) {
  for (Schedule kind : {Schedule::linear, Schedule::cosine}) {
    const OptimizerConfig c = schedule(kind);
    for (int step = 0; step < 4; ++step) EXPECT_DOUBLE_EQ(learning_rate(c, step, 13), 0.2 * (step + 1)) << step;
    EXPECT_DOUBLE_EQ(learning_rate(c, 4, 13), 0.8);
  }
}

// Steps 4 to 12 of 13: from 0.8 to a quarter of it in 8 equal parts.
TEST(LearningRate, LinearFall) {
  const OptimizerConfig c = schedule(Schedule::linear);
  EXPECT_NEAR(learning_rate(c, 5, 13), 0.725, 1e-12);
  EXPECT_NEAR(learning_rate(c, 8, 13), 0.5, 1e-12);
  EXPECT_NEAR(learning_rate(c, 12, 13), 0.2, 1e-12);
}

TEST(LearningRate, CosineFall) {
  const OptimizerConfig c = schedule(Schedule::cosine);
  EXPECT_NEAR(learning_rate(c, 6, 13), 0.2 + 0.6 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);  // a quarter of the way
  EXPECT_NEAR(learning_rate(c, 8, 13), 0.5, 1e-12);
  EXPECT_NEAR(learning_rate(c, 12, 13), 0.2, 1e-12);
}

TEST(LearningRate, EdgesOfTheSchedule) {
  OptimizerConfig c = schedule(Schedule::linear);
  // The run ends within the warm-up, or with it.
  EXPECT_DOUBLE_EQ(learning_rate(c, 2, 3), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(c, 3, 4), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate(c, 4, 5), 0.8);      // one step after it: the highest rate
  EXPECT_NEAR(learning_rate(c, 20, 13), 0.2, 1e-12);  // beyond the end: as at the end
  c.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate(c, 0, 3), 0.8);
  EXPECT_NEAR(learning_rate(c, 2, 3), 0.2, 1e-12);
}

struct Fixture {
  ModelConfig model = test::tiny_model_config();
  ParameterLayout layout;
  ShardMap whole;
  std::vector<float> gradient;

  Fixture() : layout(untied(model), 64), whole(layout), gradient(layout.size()) {
    std::mt19937 random(5);
    for (const Parameter& p : layout.all())
      for (int64_t i = 0; i < p.size(); ++i) gradient[p.offset + i] = std::normal_distribution<float>(0, 0.1f)(random);
  }
  static ModelConfig& untied(ModelConfig& c) {
    c.tied_head = false;
    return c;
  }
  Tensor gradients() { return Tensor::of(gradient.data(), {layout.size()}); }
  // What the gap between two parameters holds stays zero.
  std::vector<char> in_a_parameter() const {
    std::vector<char> used(layout.size(), 0);
    for (const Parameter& p : layout.all()) std::fill_n(used.begin() + p.offset, p.size(), 1);
    return used;
  }
  void start(const Optimizer& optimizer) const {
    test::initialize_flat(layout, model.init, 9, 40, 39, optimizer.weights());
  }
  // As TrainingState does it, on one rank without shards.
  double update(Optimizer& optimizer, double rate, int64_t t, Tensor narrow = {}) {
    Stream stream;
    const Tensor g = gradients();
    const double norm = std::sqrt(optimizer.squares(stream, {&g, 1}));
    optimizer.update(stream, {&g, 1}, {&narrow, 1}, norm, rate, t);
    return norm;
  }
};

// AdamW with decoupled decay (Loshchilov and Hutter 2019), element by element.
struct ReferenceAdamW {
  const OptimizerConfig& c;
  std::vector<double> w, m, v;

  ReferenceAdamW(const OptimizerConfig& c, Tensor weights)
      : c(c), w(weights.as<float>(), weights.as<float>() + weights.size()), m(w.size()), v(w.size()) {}

  double update(const ParameterLayout& layout, const std::vector<float>& gradient, double rate, int t) {
    double squares = 0;
    for (float g : gradient) squares += double(g) * g;
    const double norm = std::sqrt(squares), factor = c.clip > 0 && norm > c.clip ? c.clip / norm : 1;
    for (const Parameter& p : layout.all()) {
      const bool table = p.name.ends_with("embed_tokens.weight") || p.name == "lm_head.weight";
      const double decay = p.cols == 0 ? 0 : c.weight_decay, lr = table ? rate * c.embedding_scale : rate;
      for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
        const double g = gradient[i] * factor;
        m[i] = c.beta1 * m[i] + (1 - c.beta1) * g;
        v[i] = c.beta2 * v[i] + (1 - c.beta2) * g * g;
        const double m_hat = m[i] / (1 - std::pow(c.beta1, t)), v_hat = v[i] / (1 - std::pow(c.beta2, t));
        w[i] -= lr * (m_hat / (std::sqrt(v_hat) + c.eps) + decay * w[i]);
      }
    }
    return norm;
  }
};

class OptimizerUpdate : public testing::TestWithParam<double> {};

// Three updates with gradients of changing size. f32: weights round to 2^-24 of themselves at each update, moments too;
// 1 - beta2 in f32 is off by 2^-24 / 0.02 = 3e-6 of itself, which the bias correction takes out but for rounding.
TEST_P(OptimizerUpdate, EqualsAdamWInDouble) {
  Fixture f;
  OptimizerConfig c;
  c.embedding_scale = 5;
  c.beta2 = 0.98;
  c.weight_decay = 0.1;
  c.clip = GetParam();
  Optimizer optimizer(c, f.layout, f.whole);
  f.start(optimizer);
  ReferenceAdamW reference(c, optimizer.weights());
  const std::vector<char> used = f.in_a_parameter();
  for (int t = 1; t <= 3; ++t) {
    for (float& g : f.gradient) g *= -1.5f;
    const double rate = 0.01 / t, norm = reference.update(f.layout, f.gradient, rate, t);
    EXPECT_NEAR(f.update(optimizer, rate, t), norm, 1e-6 * norm);
    for (int64_t i = 0; i < f.layout.size(); ++i) {
      const double step = 5 * rate;  // the largest move of an element
      ASSERT_NEAR(optimizer.weights().as<float>()[i], used[i] ? reference.w[i] : 0,
                  2e-7 * (1 + std::abs(reference.w[i])) + 1e-5 * step)
          << "update " << t << ", element " << i;
      ASSERT_NEAR(optimizer.first_moment().as<float>()[i], reference.m[i], 1e-6 * std::abs(reference.m[i]) + 1e-9);
      ASSERT_NEAR(optimizer.second_moment().as<float>()[i], reference.v[i], 1e-5 * reference.v[i] + 1e-12);
    }
  }
}

// no clipping, clipping at every update, a bound that the gradient does not reach
INSTANTIATE_TEST_SUITE_P(Clip, OptimizerUpdate, testing::Values(0.0, 0.5, 1000.0));

// With a gradient of zero only decay moves anything: exactly the matrices and embeddings.
TEST(Optimizer, NormsAndTauDoNotDecay) {
  Fixture f;
  OptimizerConfig c;
  c.weight_decay = 0.5;
  c.embedding_scale = 3;
  Optimizer optimizer(c, f.layout, f.whole);
  f.start(optimizer);
  const std::vector<float> before(optimizer.weights().as<float>(), optimizer.weights().as<float>() + f.layout.size());
  std::fill(f.gradient.begin(), f.gradient.end(), 0.0f);
  EXPECT_EQ(f.update(optimizer, 0.1, 1), 0);
  for (const Parameter& p : f.layout.all()) {
    const float kept = p.kind == ParameterKind::matrix      ? 1 - 0.1f * 0.5f
                       : p.kind == ParameterKind::embedding ? 1 - 0.3f * 0.5f
                                                            : 1;
    for (int64_t i = p.offset; i < p.offset + p.size(); ++i)
      ASSERT_NEAR(optimizer.weights().as<float>()[i], kept * before[i], 2e-7 * std::abs(before[i])) << p.name;
  }
}

TEST(Optimizer, NormsThatAreNotFiniteAreSeen) {
  Fixture f;
  Optimizer optimizer(OptimizerConfig(), f.layout, f.whole);
  Stream stream;
  const Tensor g = f.gradients();
  EXPECT_TRUE(std::isfinite(optimizer.squares(stream, {&g, 1})));
  const int64_t last = f.layout.at("note_head.tau").offset;
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const float good = std::exchange(f.gradient[last], bad);
    EXPECT_FALSE(std::isfinite(optimizer.squares(stream, {&g, 1})));
    f.gradient[last] = good;
  }
}

TEST(Optimizer, WritesTheWeightsInBf16Too) {
  Fixture f;
  Optimizer optimizer(OptimizerConfig(), f.layout, f.whole);
  f.start(optimizer);
  std::vector<bf16> narrow(static_cast<size_t>(f.layout.size()));
  f.update(optimizer, 0.1, 1, Tensor::of(narrow.data(), {f.layout.size()}));
  const std::vector<char> used = f.in_a_parameter();
  for (int64_t i = 0; i < f.layout.size(); ++i)
    if (used[i]) {
      ASSERT_EQ(narrow[i].bits, bf16(optimizer.weights().as<float>()[i]).bits) << i;
    }
}

// Shards of three ranks together do what one rank does with all of it.
TEST(Optimizer, ShardsAddUpToTheWhole) {
  Fixture f;
  const ParameterLayout cut(f.model, 64, {}, 3);
  std::vector<float> gradient(static_cast<size_t>(cut.size()));
  for (const Parameter& p : cut.all())
    std::copy_n(f.gradient.begin() + f.layout.at(p.name).offset, p.size(), gradient.begin() + p.offset);
  OptimizerConfig c;
  c.embedding_scale = 5;
  c.weight_decay = 0.1;
  Optimizer whole(c, f.layout, f.whole);
  f.start(whole);
  const double norm = f.update(whole, 0.01, 1);
  double squares = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const ShardMap shards(cut, Sharding::optimizer, rank, 3);
    EXPECT_EQ(shards.size() * 3, cut.size());
    Optimizer part(c, cut, shards);
    shards.for_runs(cut, [&](const ShardMap::Run& run) {
      Fixture start;
      test::initialize_flat(f.layout, f.model.init, 9, 40, 39, start.gradients());
      std::copy_n(start.gradient.begin() + f.layout.at(run.parameter.name).offset + run.first, run.count,
                  part.weights().as<float>() + run.at);
    });
    std::vector<Tensor> pieces, narrow;
    for (const ShardMap::Piece& piece : shards.pieces()) {
      pieces.push_back(Tensor::of(gradient.data(), {cut.size()}).slice(piece.flat.begin, piece.flat.end));
      narrow.push_back({});
    }
    Stream stream;
    squares += part.squares(stream, pieces);
    part.update(stream, pieces, narrow, norm, 0.01, 1);
    shards.for_runs(cut, [&](const ShardMap::Run& run) {
      const float *of_part = part.weights().as<float>() + run.at,
                  *of_whole = whole.weights().as<float>() + f.layout.at(run.parameter.name).offset + run.first;
      for (int64_t i = 0; i < run.count; ++i) ASSERT_EQ(of_part[i], of_whole[i]) << run.parameter.name;
    });
  }
  EXPECT_NEAR(std::sqrt(squares), norm, 1e-12 * norm);
}

}  // namespace
}  // namespace notellm

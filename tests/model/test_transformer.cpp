// Forward against the double-precision model of tests/support, backward over more than one tile, and the arena.
// (Gradients against finite differences: tests/training/test_step.cpp.)
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "model/tiles.h"
#include "model/transformer.h"
#include "tests/support/reference_model.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

using test::tiny_model_config;
using test::TinyModel;

// The notes of the table, in turn by category, by one or two hashtags where they have them, and up to the note alone.
std::vector<NoteExample> examples_of(const NoteTable& notes, int64_t first, int64_t count) {
  std::vector<NoteExample> examples;
  for (int64_t i = first; i < first + count; ++i) {
    const auto note = static_cast<int32_t>(i % notes.size());
    NoteExample e{note, Task::category, {}, Until::note};
    if (i % 3 == 0 && !notes.category[note].empty()) e.until = Until::output;
    if (i % 3 == 1 && notes.hashtags(note) > 0) {
      e = {note, Task::hashtags, {}};
      for (int32_t t = 0; t < std::min<int64_t>(2, notes.hashtags(note)); ++t) e.topics.push_back(t);
    }
    examples.push_back(e);
  }
  return examples;
}

struct Forward {
  PackedBatch batch;
  ModelInput input;
  Transformer transformer;
  Arena arena{64 << 20};
  Stream stream;
  Tensor hidden;

  Forward(const TinyModel& model, const NoteTable& notes, const std::vector<NoteExample>& examples, bool share,
          bool with_labels, bool keep)
      : transformer(model.config, DType::f32) {
    pack(notes, examples, share, batch);
    input.set(batch, model.layout.vocabulary(), with_labels);
    hidden = transformer.forward(stream, model.parameters.weights, input, arena, keep);
  }
  const float* row(int32_t place) const { return hidden.as<float>() + place * hidden.cols(); }
};

// The largest |x - reference| over the note rows and label rows of all examples. The rows have mean square 1.
double worst_error(const TinyModel& model, const NoteTable& notes, const std::vector<NoteExample>& examples,
                   const Forward& f, bool with_labels) {
  const test::ReferenceWeights weights(model.layout, model.parameters.flat);
  double worst = 0;
  const auto compare = [&](int32_t place, const test::Row& expected) {
    for (size_t c = 0; c < expected.size(); ++c) {
      const double error = std::abs(f.row(place)[c] - expected[c]);
      worst = error <= worst ? worst : error;  // NaN counts
    }
  };
  std::vector<int32_t> tokens;
  int64_t label = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    int32_t first_label;
    const int32_t note_row = compose(notes, examples[i], tokens, &first_label);
    const test::Matrix hidden = test::reference_hidden(model.config, weights, tokens);
    compare(f.input.note_places().as<int32_t>()[i], hidden[note_row]);
    for (size_t r = first_label; with_labels && r < tokens.size(); ++r)
      compare(f.input.label_places().as<int32_t>()[label++], hidden[r]);
  }
  EXPECT_EQ(label, f.input.label_places().size());
  return worst;
}

// Rounding of f32: 2^-24 of values up to about 4, grown by sqrt(16) in a sum, in some 10 operations a layer, twice that
// through the exponent of scores of size 8: 3 layers give sqrt(30) · 4 · 4 · 2 · 2^-24 = 1e-5.
constexpr double tolerance = 1e-5;

TEST(Transformer, EqualsTheDoubleModelOnRaggedNotes) {
  const test::TinyData data = test::tiny_data(12);
  const auto examples = examples_of(data.notes, 0, 12);
  for (int layers : {1, 2, 3})
    for (int kv_heads : {1, 2, 4})
      for (bool share : {false, true}) {
        const TinyModel model(tiny_model_config(layers, kv_heads));
        const Forward f(model, data.notes, examples, share, true, false);
        EXPECT_LT(worst_error(model, data.notes, examples, f, true), tolerance)
            << layers << " layers, " << kv_heads << " kv heads, shared prefix " << share;
      }
}

TEST(Transformer, NoteRowsOnlyAndOneNote) {
  const test::TinyData data = test::tiny_data(12);
  for (int layers : {1, 2})
    for (int count : {1, 12}) {
      const TinyModel model(tiny_model_config(layers));
      const auto examples = examples_of(data.notes, 3, count);
      const Forward f(model, data.notes, examples, true, false, false);
      EXPECT_EQ(f.input.hidden_rows(), count);
      EXPECT_LT(worst_error(model, data.notes, examples, f, false), tolerance)
          << layers << " layers, " << count << " notes";
    }
}

// 70 notes are some 1,000 tokens: tiles end inside notes.
TEST(Transformer, MoreTokensThanATile) {
  const test::TinyData data = test::tiny_data(70);
  const auto examples = examples_of(data.notes, 0, 70);
  for (int layers : {1, 2}) {
    const TinyModel model(tiny_model_config(layers));
    const Forward f(model, data.notes, examples, false, true, true);
    ASSERT_GT(f.input.tokens(), tile_rows);
    ASSERT_NE(f.input.tokens() % tile_rows, 0);
    EXPECT_LT(worst_error(model, data.notes, examples, f, true), tolerance) << layers << " layers";
  }
}

// Gradient of Σ over hidden rows of hidden · direction, where a row's direction depends on its example and place only.
void add_gradient(const TinyModel& model, Forward& f, int64_t first_example, const test::FlatWeights& gradients) {
  const Tensor d_hidden = f.arena.allocate(DType::f32, {f.hidden.rows(), f.hidden.cols()});
  std::memset(d_hidden.data, 0, d_hidden.bytes());
  for (int64_t i = 0; i < f.input.note_places().size(); ++i) {
    std::mt19937 random(static_cast<unsigned>(first_example + i));
    float* row = d_hidden.as<float>() + f.input.note_places().as<int32_t>()[i] * d_hidden.cols();
    for (int64_t c = 0; c < d_hidden.cols(); ++c) row[c] = std::uniform_real_distribution<float>(-1, 1)(random);
  }
  f.transformer.backward(f.stream, model.parameters.weights, f.input, d_hidden, gradients.weights, f.arena);
}

// The gradient is a sum over notes: all at once, in several tiles, equals ten at a time, each within one tile.
TEST(Transformer, BackwardOverSeveralTilesIsTheSumOverNotes) {
  const test::TinyData data = test::tiny_data(70);
  for (int layers : {1, 2}) {
    const TinyModel model(tiny_model_config(layers));
    const test::FlatWeights whole(model.layout), parts(model.layout);
    Forward all(model, data.notes, examples_of(data.notes, 0, 70), false, false, true);
    ASSERT_GT(all.input.tokens(), tile_rows);
    add_gradient(model, all, 0, whole);
    for (int first = 0; first < 70; first += 10) {
      Forward some(model, data.notes, examples_of(data.notes, first, 10), false, false, true);
      ASSERT_LT(some.input.tokens(), tile_rows);
      add_gradient(model, some, first, parts);
    }
    for (const Parameter& p : model.layout.all()) {
      if (p.name.starts_with("note_head.")) continue;
      const auto x = p.view(whole.flat).span<float>(), y = p.view(parts.flat).span<float>();
      double difference = 0, size = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        difference += (double(x[i]) - y[i]) * (double(x[i]) - y[i]);
        size += double(y[i]) * y[i];
      }
      ASSERT_GT(size, 0) << p.name;
      // a sum of 1,000 tokens' terms in another order: about sqrt(1000) · 2^-24 = 2e-6 of its terms
      EXPECT_LT(std::sqrt(difference / size), 1e-5) << p.name << ", " << layers << " layers";
    }
  }
}

TEST(Transformer, WithoutKeepOnlyTheResultStaysInTheArena) {
  const test::TinyData data = test::tiny_data(12);
  const TinyModel model(tiny_model_config());
  const auto examples = examples_of(data.notes, 0, 12);
  const Forward left(model, data.notes, examples, true, true, false),
      kept(model, data.notes, examples, true, true, true);
  EXPECT_EQ(left.arena.used_bytes(), (left.hidden.bytes() + 63) / 64 * 64);
  EXPECT_GT(kept.arena.used_bytes(), left.arena.used_bytes());
  EXPECT_EQ(std::memcmp(left.hidden.data, kept.hidden.data, left.hidden.bytes()), 0);
}

TEST(Transformer, BackwardLeavesTheArenaAsItWasAndNeedsItsForward) {
  const test::TinyData data = test::tiny_data(12);
  const TinyModel model(tiny_model_config());
  const test::FlatWeights gradients(model.layout);
  Forward f(model, data.notes, examples_of(data.notes, 0, 12), true, false, true);
  const int64_t before = f.arena.used_bytes(), d_hidden = (f.hidden.bytes() + 63) / 64 * 64;
  add_gradient(model, f, 0, gradients);
  EXPECT_EQ(f.arena.used_bytes(), before + d_hidden);

  Transformer fresh(model.config, DType::f32);
  const Tensor d = f.arena.allocate(DType::f32, {f.hidden.rows(), f.hidden.cols()});
  try {
    fresh.backward(f.stream, model.parameters.weights, f.input, d, gradients.weights, f.arena);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("without the forward pass"), std::string::npos) << error.what();
  }
}

// What a plan of memory says and what is used: never less, and little more. (With a single layer, the scratch of tiles,
// which is not needed while the rest is largest, is a third of all.) Without a shared prefix attention needs no
// workspace, which the number leaves out.
TEST(Transformer, ArenaBytesIsACloseUpperBound) {
  const test::TinyData data = test::tiny_data(70);
  for (int layers : {1, 2, 4})
    for (bool with_labels : {true, false}) {
      const TinyModel model(tiny_model_config(layers, 4));
      const test::FlatWeights gradients(model.layout);
      Forward f(model, data.notes, examples_of(data.notes, 0, 140), false, with_labels, true);
      const int64_t d_hidden = (f.hidden.bytes() + 63) / 64 * 64;
      add_gradient(model, f, 0, gradients);
      const int64_t used = f.arena.peak_bytes() - d_hidden;
      const int64_t planned = f.transformer.arena_bytes(f.input.tokens(), f.input.hidden_rows(), true);
      EXPECT_GE(planned, used) << layers << " layers, labels " << with_labels;
      EXPECT_LE(planned, 1.1 * used) << layers << " layers, labels " << with_labels;
    }
}

}  // namespace
}  // namespace notellm

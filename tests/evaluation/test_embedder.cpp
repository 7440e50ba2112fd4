// Vectors of broken weights.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "evaluation/embedder.h"
#include "tests/support/expect_error.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

void embed_all(const NoteTable& notes, const test::TinyModel& model) {
  std::vector<int32_t> rows(notes.size());
  std::iota(rows.begin(), rows.end(), 0);
  const Buffer memory(notes.size() * model.config.note_dim * 4);
  Communicator ranks = Communicator::world();
  Stream stream;
  Embedder(model.config, DType::f32, 5)
      .embed(stream, ranks, model.parameters.weights, notes, rows,
             memory.tensor(DType::f32, {notes.size(), model.config.note_dim}), false);
}

// One number is enough; on every rank, whichever of them computed the note.
TEST(Embedder, RefusesVectorsOfBrokenWeights) {
  const NoteTable notes = test::tiny_data(20).notes;
  test::TinyModel model(test::tiny_model_config());
  embed_all(notes, model);
  const auto broken = [&](const char* parameter, int64_t at, float value) {
    float& number = model.layout.at(parameter).view(model.parameters.flat).as<float>()[at];
    const float before = std::exchange(number, value);
    EXPECT_ERROR(diverged, "the weights are broken, or training diverged", embed_all(notes, model));
    number = before;
  };
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    broken("note_head.weight", 0, value);
    broken("model.norm.weight", 0, value);
    broken("model.layers.0.mlp.down_proj.weight", 0, value);
  }
  // One note alone, by its token.
  const int32_t token = notes.category_input[7][0];
  broken("model.embed_tokens.weight", token * model.config.dim, std::numeric_limits<float>::infinity());
  embed_all(notes, model);
}

TEST(Embedder, NamesTheFirstNoteWhoseVectorIsNotOfLengthOne) {
  std::vector<float> values = {1, 0, 0.6f, 0.8f, 0, 0, 3, 4};
  const Tensor vectors = Tensor::of(values.data(), {4, 2});
  const auto id_of = [](int64_t i) { return fmt::format("n{}", i); };
  EXPECT_ERROR(diverged, "the vector of note n2 has length 0, not 1", require_unit_vectors(vectors, id_of));
  EXPECT_ERROR(diverged, "the vector of note n0 has length 5, not 1", require_unit_vectors(vectors.slice(3, 4), id_of));
  require_unit_vectors(vectors.slice(0, 2), id_of);
}

}  // namespace
}  // namespace notellm

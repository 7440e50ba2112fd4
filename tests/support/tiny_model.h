// Flat weights of a small model with the views that the code under test takes.
#pragma once

#include "model/parameters.h"
#include "runtime/memory.h"

namespace notellm::test {

// dim 12, 4 heads of 4 over `kv_heads`, ffn 10, note vectors of 6, context 64. The weights are far from the flat
// beginning of training, so that attention is not uniform and every gradient is of a size.
inline ModelConfig tiny_model_config(int layers = 2, int kv_heads = 2) {
  ModelConfig c;
  c.dim = 12;
  c.layers = layers;
  c.heads = 4;
  c.kv_heads = kv_heads;
  c.head_dim = 4;
  c.ffn = 10;
  c.note_dim = 6;
  c.context = 64;
  c.init.embedding_std = 0.5;
  c.init.matrix_std = 0.3;
  return c;
}

// Initial values of a layout in its flat f32 array.
inline void initialize_flat(const ParameterLayout& layout, const InitConfig& config, uint64_t seed,
                            int64_t tokens_in_use, int64_t mean_row, Tensor flat) {
  initialize(layout, config, seed, tokens_in_use, mean_row, [&](const Parameter& p, Tensor values) {
    std::copy_n(values.as<float>(), p.size(), p.view(flat).as<float>());
  });
}

// One flat f32 array over a layout, zero at first.
struct FlatWeights {
  Buffer memory;
  Tensor flat;
  Weights weights;

  explicit FlatWeights(const ParameterLayout& layout)
      : memory(layout.size() * 4), flat(memory.tensor(DType::f32, {layout.size()})), weights(layout, flat) {}
};

// An initialised model over the vocabulary of tests/support/tiny_notes.h: 40 tokens, [EMB] is 39.
struct TinyModel {
  ModelConfig config;
  ParameterLayout layout;
  FlatWeights parameters;

  explicit TinyModel(const ModelConfig& c, uint64_t seed = 1)
      : config(c), layout(c, padded_vocabulary(40)), parameters(layout) {
    initialize_flat(layout, config.init, seed, 40, 39, parameters.flat);
  }
};

}  // namespace notellm::test

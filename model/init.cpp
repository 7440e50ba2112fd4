#include <cmath>
#include <numbers>

#include "model/parameters.h"
#include "runtime/random.h"

namespace notellm {
namespace {

// Standard normal numbers by Box and Muller, element by element from the counter.
void fill_normal(Tensor t, double std, uint64_t key) {
  float* x = t.as<float>();
  for (int64_t i = 0; i < t.size(); ++i) {
    const double u = 1 - random_unit(key, i, 0), angle = 2 * std::numbers::pi * random_unit(key, i, 1);
    x[i] = static_cast<float>(std * std::sqrt(-2 * std::log(u)) * std::cos(angle));
  }
}

void fill_identity(Tensor t) {
  for (int64_t r = 0; r < t.rows(); ++r)
    for (int64_t c = 0; c < t.cols(); ++c) t.as<float>()[r * t.cols() + c] = r == c;
}

void scale(Tensor t, float factor) {
  for (float& x : t.span<float>()) x *= factor;
}

// New special tokens start as the mean of the tokens there are (notellm.md §2).
void fill_special_rows(Tensor embedding, int64_t tokens_in_use, int64_t mean_row) {
  const int64_t cols = embedding.cols();
  float* table = embedding.as<float>();
  std::fill(table + tokens_in_use * cols, table + embedding.size(), 0.0f);
  for (int64_t c = 0; c < cols; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < mean_row; ++r) sum += table[r * cols + c];
    table[mean_row * cols + c] = static_cast<float>(sum / mean_row);
  }
}

}  // namespace

void initialize(const ParameterLayout& layout, const ModelConfig& config, uint64_t seed, int64_t tokens_in_use,
                int64_t mean_row, Tensor flat) {
  NOTELLM_CHECK(flat.size() == layout.size(), "{} for {} parameters", describe(flat), layout.size());
  NOTELLM_CHECK(0 < mean_row && mean_row < tokens_in_use && tokens_in_use <= layout.vocabulary(), "row {} of {} tokens",
                mean_row, tokens_in_use);
  for (size_t i = 0; i < layout.all().size(); ++i) {
    const Parameter& p = layout.all()[i];
    const Tensor view = p.view(flat);
    const uint64_t key = random_bits(seed, i, 0x1217);
    switch (p.kind) {
      case ParameterKind::embedding:
        fill_normal(view, config.init.embedding_std, key);
        fill_special_rows(view, tokens_in_use, mean_row);
        break;
      case ParameterKind::matrix:
        fill_normal(view, config.init.matrix_std, key);
        break;
      case ParameterKind::norm:
        std::fill_n(view.as<float>(), view.size(), 1.0f);
        break;
      case ParameterKind::temperature:
        *view.as<float>() = static_cast<float>(config.init.tau);
        break;
    }
  }
  if (config.init.first_attention == FirstAttention::average) {
    scale(layout.at("model.layers.0.self_attn.q_proj.weight").view(flat), 0.1f);
    scale(layout.at("model.layers.0.self_attn.k_proj.weight").view(flat), 0.1f);
    fill_identity(layout.at("model.layers.0.self_attn.v_proj.weight").view(flat));
    fill_identity(layout.at("model.layers.0.self_attn.o_proj.weight").view(flat));
  }
}

}  // namespace notellm

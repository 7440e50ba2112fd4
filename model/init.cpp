#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/parameters.h"
#include "runtime/memory.h"
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

bool in_first_attention(const Parameter& p, std::string_view which) {
  return p.name == fmt::format("model.layers.0.self_attn.{}_proj.weight", which);
}

void fill_matrix(const Parameter& p, const InitConfig& config, uint64_t key, Tensor t) {
  const bool average = config.first_attention == FirstAttention::average;
  if (average && (in_first_attention(p, "v") || in_first_attention(p, "o"))) return fill_identity(t);
  fill_normal(t, config.matrix_std, key);
  if (average && (in_first_attention(p, "q") || in_first_attention(p, "k"))) scale(t, 0.1f);
}

void fill(const Parameter& p, const ModelConfig& config, uint64_t key, int64_t tokens_in_use, int64_t mean_row,
          Tensor t) {
  switch (p.kind) {
    case ParameterKind::embedding:
      fill_normal(t, config.init.embedding_std, key);
      return fill_special_rows(t, tokens_in_use, mean_row);
    case ParameterKind::matrix:
      return fill_matrix(p, config.init, key, t);
    case ParameterKind::norm:
      std::fill_n(t.as<float>(), t.size(), 1.0f);
      return;
    case ParameterKind::temperature:
      *t.as<float>() = static_cast<float>(config.init.tau);
  }
}

}  // namespace

void initialize(Stream& stream, const ParameterLayout& layout, const ModelConfig& config, uint64_t seed,
                int64_t tokens_in_use, int64_t mean_row, Tensor flat) {
  NOTELLM_CHECK(flat.size() == layout.size(), "{} for {} parameters", describe(flat), layout.size());
  NOTELLM_CHECK(0 < mean_row && mean_row < tokens_in_use && tokens_in_use <= layout.vocabulary(), "row {} of {} tokens",
                mean_row, tokens_in_use);
  const auto largest = std::ranges::max(layout.all(), {}, &Parameter::size).size();
  const Buffer memory(stream.on_gpu() ? largest * size_of(DType::f32) : 0);
  for (size_t i = 0; i < layout.all().size(); ++i) {
    const Parameter& p = layout.all()[i];
    Tensor view = p.view(flat);
    if (stream.on_gpu()) view.data = memory.data();
    fill(p, config, random_bits(seed, i, 0x1217), tokens_in_use, mean_row, view);
    if (!stream.on_gpu()) continue;
    copy(stream, view, p.view(flat));
    stream.synchronize();  // before the next parameter is written there
  }
}

}  // namespace notellm

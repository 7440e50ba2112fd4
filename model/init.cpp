#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/parameters.h"
#include "runtime/memory.h"
#include "runtime/random.h"

namespace notellm {
namespace {

// Standard normal numbers by Box and Muller, element by element from the counter.
float normal(double std, uint64_t key, int64_t element) {
  const double u = 1 - random_unit(key, element, 0), angle = 2 * std::numbers::pi * random_unit(key, element, 1);
  return static_cast<float>(std * std::sqrt(-2 * std::log(u)) * std::cos(angle));
}

// Calls value(row, column of the whole matrix) for each element of the part.
template <class Value>
void fill_by(const Parameter& p, Tensor t, const Value& value) {
  const int64_t cols = std::max<int64_t>(1, p.cols);
  float* x = t.as<float>();
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t c = 0; c < cols; ++c) *x++ = value(p.row_begin + r, p.col_begin + c);
}

void fill_normal(const Parameter& p, double std, uint64_t key, Tensor t) {
  fill_by(p, t, [&](int64_t r, int64_t c) { return normal(std, key, r * p.all_cols + c); });
}

void scale(Tensor t, float factor) {
  for (float& x : t.span<float>()) x *= factor;
}

// New special tokens start as the mean of the tokens there are (notellm.md §2), whether they are in this part or not.
void fill_special_rows(const Parameter& p, double std, uint64_t key, int64_t tokens_in_use, int64_t mean_row,
                       Tensor t) {
  const int64_t cols = p.cols, first = p.row_begin, end = first + p.rows;
  float* table = t.as<float>();
  std::fill(table + std::clamp<int64_t>(tokens_in_use - first, 0, p.rows) * cols, table + t.size(), 0.0f);
  if (mean_row < first || mean_row >= end) return;
  for (int64_t c = 0; c < cols; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < mean_row; ++r)
      sum += r < first ? normal(std, key, r * cols + c) : table[(r - first) * cols + c];
    table[(mean_row - first) * cols + c] = static_cast<float>(sum / mean_row);
  }
}

bool in_first_attention(const Parameter& p, std::string_view which) {
  return p.name == fmt::format("model.layers.0.self_attn.{}_proj.weight", which);
}

void fill_matrix(const Parameter& p, const InitConfig& config, uint64_t key, Tensor t) {
  const bool average = config.first_attention == FirstAttention::average;
  if (average && (in_first_attention(p, "v") || in_first_attention(p, "o")))
    return fill_by(p, t, [](int64_t r, int64_t c) { return r == c ? 1.0f : 0.0f; });
  fill_normal(p, config.matrix_std, key, t);
  if (average && (in_first_attention(p, "q") || in_first_attention(p, "k"))) scale(t, 0.1f);
}

void fill(const Parameter& p, const InitConfig& config, uint64_t key, int64_t tokens_in_use, int64_t mean_row,
          Tensor t) {
  switch (p.kind) {
    case ParameterKind::embedding:
      fill_normal(p, config.embedding_std, key, t);
      return fill_special_rows(p, config.embedding_std, key, tokens_in_use, mean_row, t);
    case ParameterKind::matrix:
      return fill_matrix(p, config, key, t);
    case ParameterKind::bias:
      std::fill_n(t.as<float>(), t.size(), 0.0f);
      return;
    case ParameterKind::norm:
      std::fill_n(t.as<float>(), t.size(), 1.0f);
      return;
    case ParameterKind::temperature:
      *t.as<float>() = static_cast<float>(config.tau);
  }
}

}  // namespace

namespace {

// Parameters from `first` on, which is no embedding unless the tokens are given.
void initialize_from(size_t first, const ParameterLayout& layout, const InitConfig& config, uint64_t seed,
                     int64_t tokens_in_use, int64_t mean_row,
                     const std::function<void(const Parameter&, Tensor)>& take) {
  int64_t largest = 0;
  for (size_t i = first; i < layout.all().size(); ++i) largest = std::max(largest, layout.all()[i].size());
  const Buffer memory(largest * size_of(DType::f32));
  for (size_t i = first; i < layout.all().size(); ++i) {
    const Parameter& p = layout.all()[i];
    const Tensor values = memory.tensor(DType::f32, {p.rows, std::max<int64_t>(1, p.cols)});
    fill(p, config, random_bits(seed, i, 0x1217), tokens_in_use, mean_row, values);
    take(p, values);
  }
}

}  // namespace

void initialize_note_head(const ParameterLayout& layout, const InitConfig& config, uint64_t seed,
                          const std::function<void(const Parameter&, Tensor)>& take) {
  const auto first = std::ranges::find(layout.all(), "note_head.weight", &Parameter::name) - layout.all().begin();
  initialize_from(static_cast<size_t>(first), layout, config, seed, 0, 0, take);
}

void initialize(const ParameterLayout& layout, const InitConfig& config, uint64_t seed, int64_t tokens_in_use,
                int64_t mean_row, const std::function<void(const Parameter&, Tensor)>& take) {
  NOTELLM_CHECK(0 < mean_row && mean_row < tokens_in_use && tokens_in_use <= layout.vocabulary(), "row {} of {} tokens",
                mean_row, tokens_in_use);
  initialize_from(0, layout, config, seed, tokens_in_use, mean_row, take);
}

}  // namespace notellm

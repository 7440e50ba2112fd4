// The whole model and objective again, in double, one note at a time, straight from the formulas: no packing, no tiles,
// no sharing, no backward pass. What the program computes is held against it, and its gradient against finite
// differences of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data_pipeline/batch.h"
#include "model/parameters.h"

namespace notellm::test {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;  // [rows][cols]

// Parameters by name, in double.
struct ReferenceWeights {
  std::map<std::string, Matrix> of;

  ReferenceWeights(const ParameterLayout& layout, Tensor flat) {
    for (const Parameter& p : layout.all()) {
      const float* x = p.view(flat).as<float>();
      const int64_t cols = p.cols ? p.cols : 1;
      Matrix m(p.rows, Row(cols));
      for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t c = 0; c < cols; ++c) m[r][c] = x[r * cols + c];
      of[p.name] = m;
    }
  }
  const Matrix& layer(int l, const char* name) const {
    return of.at("model.layers." + std::to_string(l) + "." + name + ".weight");
  }
  // x + the bias of that name, where there is one.
  Row plus_bias(int l, const char* name, Row x) const {
    const auto bias = of.find("model.layers." + std::to_string(l) + "." + name + ".bias");
    for (size_t i = 0; bias != of.end() && i < x.size(); ++i) x[i] += bias->second[i][0];
    return x;
  }
};

inline double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline Row times(const Matrix& w, const Row& x) {
  Row y;
  for (const Row& row : w) y.push_back(dot(row, x));
  return y;
}

inline Row normed(const Row& x, const Matrix& gamma, double eps) {
  const double scale = 1 / std::sqrt(dot(x, x) / x.size() + eps);
  Row y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * gamma[i][0];
  return y;
}

// The frequencies as transformers has them for Llama 3, by wave lengths.
inline double frequency_of(const ModelConfig& c, int i) {
  const double plain = std::pow(c.rope_theta, -2.0 * i / c.head_dim), wave_length = 2 * M_PI / plain;
  const RopeScalingConfig& s = c.rope_scaling;
  if (s.type == RopeScaling::none || wave_length < s.original_context / s.high_frequency_factor) return plain;
  if (wave_length > s.original_context / s.low_frequency_factor) return plain / s.factor;
  const double smooth =
      (s.original_context / wave_length - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor);
  return (1 - smooth) * plain / s.factor + smooth * plain;
}

inline void rotate(const ModelConfig& c, Row& x, int head, int position) {
  const int head_dim = c.head_dim;
  for (int i = 0; i < head_dim / 2; ++i) {
    const double angle = position * frequency_of(c, i);
    double &a = x[head * head_dim + i], &b = x[head * head_dim + i + head_dim / 2];
    const double rotated = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = rotated;
  }
}

inline double log_sum_exp(const Row& x) {
  double most = -INFINITY, sum = 0;
  for (double v : x) most = std::max(most, v);
  for (double v : x) sum += std::exp(v - most);
  return most + std::log(sum);
}

// Hidden states after the final norm of every token of one sequence.
inline Matrix reference_hidden(const ModelConfig& c, const ReferenceWeights& w, const std::vector<int32_t>& tokens) {
  Matrix x;
  for (int32_t t : tokens) x.push_back(w.of.at("model.embed_tokens.weight")[t]);
  const int n = static_cast<int>(tokens.size()), group = c.heads / c.kv_heads;
  for (int l = 0; l < c.layers; ++l) {
    Matrix q, k, v;
    for (int t = 0; t < n; ++t) {
      const Row y = normed(x[t], w.layer(l, "input_layernorm"), c.norm_eps);
      q.push_back(w.plus_bias(l, "self_attn.q_proj", times(w.layer(l, "self_attn.q_proj"), y)));
      k.push_back(w.plus_bias(l, "self_attn.k_proj", times(w.layer(l, "self_attn.k_proj"), y)));
      v.push_back(w.plus_bias(l, "self_attn.v_proj", times(w.layer(l, "self_attn.v_proj"), y)));
      for (int h = 0; h < c.heads; ++h) rotate(c, q[t], h, t);
      for (int h = 0; h < c.kv_heads; ++h) rotate(c, k[t], h, t);
    }
    for (int t = 0; t < n; ++t) {
      Row o(c.q_dim());
      for (int h = 0; h < c.heads; ++h) {
        Row scores;
        for (int s = 0; s <= t; ++s) {
          double score = 0;
          for (int i = 0; i < c.head_dim; ++i) score += q[t][h * c.head_dim + i] * k[s][h / group * c.head_dim + i];
          scores.push_back(score / std::sqrt(c.head_dim));
        }
        const double lse = log_sum_exp(scores);
        for (int s = 0; s <= t; ++s)
          for (int i = 0; i < c.head_dim; ++i)
            o[h * c.head_dim + i] += std::exp(scores[s] - lse) * v[s][h / group * c.head_dim + i];
      }
      const Row a = times(w.layer(l, "self_attn.o_proj"), o);
      for (int i = 0; i < c.dim; ++i) x[t][i] += a[i];
      const Row y = normed(x[t], w.layer(l, "post_attention_layernorm"), c.norm_eps);
      Row gate = times(w.layer(l, "mlp.gate_proj"), y);
      const Row up = times(w.layer(l, "mlp.up_proj"), y);
      for (int i = 0; i < c.ffn; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const Row down = times(w.layer(l, "mlp.down_proj"), gate);
      for (int i = 0; i < c.dim; ++i) x[t][i] += down[i];
    }
  }
  for (Row& row : x) row = normed(row, w.of.at("model.norm.weight"), c.norm_eps);
  return x;
}

struct ReferenceLoss {
  double loss = 0, contrastive = 0, token = 0;
};

// L = (L_cl + alpha·L_gen)/(1 + alpha) of a whole step (docs/notellm.md §5); log_q: one per note, or empty.
inline ReferenceLoss reference_loss(const ModelConfig& c, const ReferenceWeights& w, const NoteTable& notes,
                                    const std::vector<NoteExample>& examples, const std::vector<double>& log_q,
                                    bool mask_known, double alpha) {
  const Matrix& head = w.of.count("lm_head.weight") ? w.of.at("lm_head.weight") : w.of.at("model.embed_tokens.weight");
  Matrix z;
  double token = 0;
  int64_t labels = 0;
  std::vector<int32_t> tokens;
  for (const NoteExample& example : examples) {
    int32_t first_label;
    const int32_t note_row = compose(notes, example, tokens, &first_label);
    const Matrix hidden = reference_hidden(c, w, tokens);
    Row v = times(w.of.at("note_head.weight"), hidden[note_row]);
    const double norm = std::sqrt(dot(v, v));
    for (double& x : v) x /= norm;
    z.push_back(v);
    for (size_t r = first_label; r < tokens.size(); ++r) {
      Row logits = times(head, hidden[r]);
      logits.resize(notes.prompt.vocabulary);
      const int32_t label = r + 1 < tokens.size() ? tokens[r + 1] : notes.prompt.eos;
      token += log_sum_exp(logits) - logits[label];
      ++labels;
    }
  }
  const double scale = std::exp(w.of.at("note_head.tau")[0][0]);
  const auto known = [&](int32_t a, int32_t b) {
    for (size_t p = 0; p < examples.size(); p += 2)
      if ((examples[p].note == a && examples[p + 1].note == b) || (examples[p].note == b && examples[p + 1].note == a))
        return true;
    return false;
  };
  double contrastive = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    Row row;
    double positive = 0;
    for (size_t j = 0; j < z.size(); ++j) {
      const int32_t a = examples[i].note, b = examples[j].note;
      if (j == i || (mask_known && j != (i ^ 1) && (a == b || known(a, b)))) continue;
      row.push_back(dot(z[i], z[j]) * scale - (log_q.empty() ? 0 : log_q[j]));
      if (j == (i ^ 1)) positive = row.back();
    }
    contrastive += log_sum_exp(row) - positive;
  }
  ReferenceLoss result;
  result.contrastive = contrastive / z.size();
  result.token = labels ? token / labels : 0;
  result.loss = (result.contrastive + alpha * result.token) / (1 + alpha);
  return result;
}

}  // namespace notellm::test

#include "training/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/adamw.h"

namespace notellm {

double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps) {
  if (step < config.warmup_steps) return config.learning_rate * static_cast<double>(step + 1) / config.warmup_steps;
  const int64_t left = std::max<int64_t>(1, steps - 1 - config.warmup_steps);
  const double done = std::min(1.0, static_cast<double>(step - config.warmup_steps) / static_cast<double>(left));
  const double fall = config.schedule == Schedule::linear ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return config.learning_rate * (config.final_share + (1 - config.final_share) * fall);
}

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterLayout& layout, const ShardMap& shards,
                     Device device)
    : config_(config),
      size_(shards.size()),
      device_(device),
      weights_(size_ * 4, memory_of(device), "master weights"),
      first_moment_(size_ * 4, memory_of(device), "moments"),
      second_moment_(size_ * 4, memory_of(device), "moments") {
  if (device != Device::cpu) {  // host memory is zero
    Stream stream(device);
    for (const Tensor& t : {weights(), first_moment(), second_moment()}) set_zero(stream, t);
    stream.synchronize();
  }
  for (const ShardMap::Piece& piece : shards.pieces()) piece_at_.push_back(piece.at);
  // The few elements between two parameters are zero and stay zero: neighbours that are alike become one group.
  const auto add = [](std::vector<Group>& groups, const Group& g) {
    if (!groups.empty() && groups.back().piece == g.piece && groups.back().copies == g.copies &&
        groups.back().learning_rate_scale == g.learning_rate_scale && groups.back().weight_decay == g.weight_decay)
      groups.back().end = g.end;
    else
      groups.push_back(g);
  };
  shards.for_runs(layout, [&](const ShardMap::Run& run) {
    const Parameter& p = run.parameter;
    const bool decays = p.kind == ParameterKind::matrix || p.kind == ParameterKind::embedding;
    const size_t piece = std::upper_bound(piece_at_.begin(), piece_at_.end(), run.at) - piece_at_.begin() - 1;
    const int64_t begin = run.at - piece_at_[piece];
    const double scale = p.kind == ParameterKind::embedding ? config.embedding_scale : 1;
    add(groups_, {piece, begin, begin + run.count, scale, decays ? config.weight_decay : 0, 1});
    add(norm_groups_, {piece, begin, begin + run.count, 1, 0, p.copies});
  });
  squares_ = Buffer((std::ssize(norm_groups_) + sum_of_squares_parts) * size_of(DType::f64), memory_of(device));
}

double Optimizer::squares(Stream& stream, std::span<const Tensor> gradients) {
  const int64_t n = std::ssize(norm_groups_);
  const Tensor memory = squares_.tensor(DType::f64, {n + sum_of_squares_parts});
  for (int64_t i = 0; i < n; ++i) {
    const Group& g = norm_groups_[i];
    sum_of_squares(stream, gradients[g.piece].slice(g.begin, g.end), memory.slice(i, i + 1),
                   memory.slice(n, memory.rows()));
  }
  std::vector<double> sums(norm_groups_.size());
  copy(stream, memory.slice(0, n), Tensor::of(sums.data(), {n}));
  stream.synchronize();
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += sums[i] / norm_groups_[i].copies;
  return sum;
}

void Optimizer::update(Stream& stream, std::span<const Tensor> gradients, std::span<const Tensor> compute, double norm,
                       double learning_rate, int64_t update) {
  const double clipped = config_.clip > 0 && norm > config_.clip ? config_.clip / norm : 1;
  for (const Group& g : groups_) {
    const AdamWStep step{.learning_rate = static_cast<float>(learning_rate * g.learning_rate_scale),
                         .beta1 = static_cast<float>(config_.beta1),
                         .beta2 = static_cast<float>(config_.beta2),
                         .eps = static_cast<float>(config_.eps),
                         .weight_decay = static_cast<float>(g.weight_decay),
                         .gradient_scale = static_cast<float>(clipped),
                         .step = update};
    const int64_t at = piece_at_[g.piece];
    const auto part = [&](const Tensor& t) { return t.slice(at + g.begin, at + g.end); };
    adamw(stream, step, gradients[g.piece].slice(g.begin, g.end), part(weights()), part(first_moment()),
          part(second_moment()), compute[g.piece].empty() ? Tensor() : compute[g.piece].slice(g.begin, g.end));
  }
}

}  // namespace notellm

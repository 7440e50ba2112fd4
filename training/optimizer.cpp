#include "training/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/adamw.h"
#include "kernels/convert.h"

namespace notellm {

double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps) {
  if (step < config.warmup_steps) return config.learning_rate * static_cast<double>(step + 1) / config.warmup_steps;
  const int64_t left = std::max<int64_t>(1, steps - 1 - config.warmup_steps);
  const double done = std::min(1.0, static_cast<double>(step - config.warmup_steps) / static_cast<double>(left));
  const double fall = config.schedule == Schedule::linear ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return config.learning_rate * (config.final_share + (1 - config.final_share) * fall);
}

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterLayout& layout, DType compute, Device device)
    : config_(config),
      size_(layout.size()),
      compute_(compute),
      device_(device),
      weights_(size_ * 4, memory_of(device), "parameters"),
      first_moment_(size_ * 4, memory_of(device), "moments"),
      second_moment_(size_ * 4, memory_of(device), "moments"),
      compute_weights_(compute == DType::f32 ? 0 : size_ * size_of(compute), memory_of(device), "parameters"),
      squares_((1 + sum_of_squares_parts) * size_of(DType::f64), memory_of(device)) {
  if (device != Device::cpu) {  // host memory is zero
    Stream stream(device);
    for (const Tensor& t : {weights(), first_moment(), second_moment()}) set_zero(stream, t);
    stream.synchronize();
  }
  for (const Parameter& p : layout.all()) {
    const bool decays = p.kind == ParameterKind::matrix || p.kind == ParameterKind::embedding;
    const double scale = p.kind == ParameterKind::embedding ? config.embedding_scale : 1;
    const double decay = decays ? config.weight_decay : 0;
    // The few elements between two parameters are zero and stay zero.
    if (!groups_.empty() && groups_.back().learning_rate_scale == scale && groups_.back().weight_decay == decay)
      groups_.back().end = p.offset + p.size();
    else
      groups_.push_back({p.offset, p.offset + p.size(), scale, decay});
  }
}

void Optimizer::refresh_compute_weights() {
  if (compute_ == DType::f32) return;
  Stream stream(device_);
  convert(stream, weights(), compute_weights());
  stream.synchronize();
}

double Optimizer::update(Stream& stream, Tensor gradients, double learning_rate, int64_t update) {
  const Tensor squares = squares_.tensor(DType::f64, {1 + sum_of_squares_parts});
  double sum = 0;
  sum_of_squares(stream, gradients, squares.slice(0, 1), squares.slice(1, squares.rows()));
  copy(stream, squares.slice(0, 1), Tensor::of(&sum, {1}));
  stream.synchronize();
  const double norm = std::sqrt(sum);
  if (!std::isfinite(norm)) return norm;
  const double clipped = config_.clip > 0 && norm > config_.clip ? config_.clip / norm : 1;
  for (const Group& g : groups_) {
    const AdamWStep step{.learning_rate = static_cast<float>(learning_rate * g.learning_rate_scale),
                         .beta1 = static_cast<float>(config_.beta1),
                         .beta2 = static_cast<float>(config_.beta2),
                         .eps = static_cast<float>(config_.eps),
                         .weight_decay = static_cast<float>(g.weight_decay),
                         .gradient_scale = static_cast<float>(clipped),
                         .step = update};
    const auto part = [&](const Tensor& t) { return t.slice(g.begin, g.end); };
    adamw(stream, step, part(gradients), part(weights()), part(first_moment()), part(second_moment()),
          compute_ == DType::f32 ? Tensor() : part(compute_weights()));
  }
  return norm;
}

}  // namespace notellm

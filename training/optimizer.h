// AdamW over the flat parameter array, the learning-rate schedule, and clipping.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "training/config.h"

namespace notellm {

// Learning rate of step `step` (from 0) of `steps`: linear warm-up over warmup_steps to the highest rate, then linear
// or cosine to final_share of it at the last step.
double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps);

// The state of training: f32 master weights, moments, and the weights that the model computes with (bf16: a copy).
class Optimizer {
 public:
  // All zero, in memory of the device.
  Optimizer(const OptimizerConfig& config, const ParameterLayout& layout, DType compute, Device device = Device::cpu);

  Device device() const { return device_; }

  Tensor weights() const { return weights_.tensor(DType::f32, {size_}); }
  Tensor first_moment() const { return first_moment_.tensor(DType::f32, {size_}); }
  Tensor second_moment() const { return second_moment_.tensor(DType::f32, {size_}); }
  // What the model computes with: weights(), or their bf16 copy.
  Tensor compute_weights() const {
    return compute_ == DType::f32 ? weights() : compute_weights_.tensor(compute_, {size_});
  }
  // After weights() was written from outside.
  void refresh_compute_weights();

  // One update from `gradients`. Returns the gradient's global norm before clipping; when that is not finite nothing is
  // changed (the caller counts skipped steps; all ranks see the same norm). update: from 1, for the bias correction.
  double update(Stream& stream, Tensor gradients, double learning_rate, int64_t update);

 private:
  // A run of the flat array with the same settings.
  struct Group {
    int64_t begin, end;
    double learning_rate_scale, weight_decay;
  };
  OptimizerConfig config_;
  int64_t size_;
  DType compute_;
  Device device_;
  std::vector<Group> groups_;
  Buffer weights_, first_moment_, second_moment_, compute_weights_;
  Buffer squares_;  // the sum of squared gradients, and its workspace
};

}  // namespace notellm

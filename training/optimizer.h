// AdamW over the pieces of the flat parameter array that a rank keeps, the learning-rate schedule, and clipping.
#pragma once

#include <span>
#include <vector>

#include "model/parameters.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "training/config.h"
#include "training/sharding.h"

namespace notellm {

// Learning rate of step `step` (from 0) of `steps`: linear warm-up over warmup_steps to the highest rate, then linear
// or cosine to final_share of it at the last step.
double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps);

// f32 master weights and moments of the rank's pieces.
class Optimizer {
 public:
  // All zero, in memory of the device.
  Optimizer(const OptimizerConfig& config, const ParameterLayout& layout, const ShardMap& shards,
            Device device = Device::cpu);

  Device device() const { return device_; }
  // Of master weights and moments.
  static int64_t memory_bytes(const ShardMap& shards) { return 3 * shards.size() * size_of(DType::f32); }
  int64_t memory_bytes() const { return weights_.bytes() + first_moment_.bytes() + second_moment_.bytes(); }

  // [shards.size()] f32, piece after piece: without sharding in the order of the layout.
  Tensor weights() const { return weights_.tensor(DType::f32, {size_}); }
  Tensor first_moment() const { return first_moment_.tensor(DType::f32, {size_}); }
  Tensor second_moment() const { return second_moment_.tensor(DType::f32, {size_}); }

  // Σ g² of the rank's pieces, each parameter divided by the number of ranks that hold it: the sum over a tensor group,
  // and with sharding over the data group, is the square of the global norm. Waits for the stream. gradients: f32, one
  // for each piece.
  double squares(Stream& stream, std::span<const Tensor> gradients);
  // One update. norm: of all gradients, before clipping; finite. compute: for each piece the bf16 weights that the
  // model computes with, written too; or empty tensors. update: from 1, for the bias correction.
  void update(Stream& stream, std::span<const Tensor> gradients, std::span<const Tensor> compute, double norm,
              double learning_rate, int64_t update);

 private:
  // A run of a piece with the same settings.
  struct Group {
    size_t piece;
    int64_t begin, end;  // in the piece
    double learning_rate_scale, weight_decay;
    int copies;
  };
  OptimizerConfig config_;
  int64_t size_;
  Device device_;
  std::vector<int64_t> piece_at_;
  std::vector<Group> groups_;
  std::vector<Group> norm_groups_;  // … with the same number of copies
  Buffer weights_, first_moment_, second_moment_;
  Buffer squares_;  // a sum for each norm group, and the workspace
};

}  // namespace notellm

// AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

struct AdamWStep {
  float learning_rate;
  float beta1, beta2, eps;
  float weight_decay;
  float gradient_scale;  // the clipping factor
  int64_t step;          // from 1, for the bias correction
};

// g = gradient·gradient_scale;  m = β1 m + (1−β1) g;  v = β2 v + (1−β2) g²
// w −= lr·( (m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps) + weight_decay·w );   compute = bf16(w)
//
//   weights, gradient, m, v  [n] f32;  compute [n] bf16, or empty
// One pass over the state. Throws Error: shape or dtype mismatch; step < 1.
void adamw(Stream& stream, const AdamWStep& step, Tensor gradient, Tensor weights, Tensor m, Tensor v, Tensor compute);

// Σ x² of f32, in double, in fixed parts: the same bits for any number of threads. NaN and Inf carry through.
double sum_of_squares(Stream& stream, Tensor x);

}  // namespace notellm

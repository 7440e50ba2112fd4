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

// result[0] = Σ x² of f32, in double, in a fixed number of parts: the same bits for any number of threads. NaN and Inf
// carry through.
//   result [1] f64;  workspace [sum_of_squares_parts] f64, overwritten: the sums of the parts
// Throws Error: shape or dtype mismatch.
void sum_of_squares(Stream& stream, Tensor x, Tensor result, Tensor workspace);
inline constexpr int64_t sum_of_squares_parts = 1024;

// An AdamWStep with everything that is the same for all elements worked out.
struct AdamWFactors {
  float gradient_scale, beta1, beta2, keep1, keep2;
  float step_size;     // lr / (1 − β1^t)
  float inverse_bias;  // 1 / sqrt(1 − β2^t)
  float eps, decay;    // decay = lr · weight_decay
};

namespace gpu {  // after the checks
void adamw(Stream& stream, const AdamWFactors& f, Tensor gradient, Tensor weights, Tensor m, Tensor v, Tensor compute);
void sum_of_squares(Stream& stream, Tensor x, Tensor result, Tensor workspace);
}  // namespace gpu

}  // namespace notellm

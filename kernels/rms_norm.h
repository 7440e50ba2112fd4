// RMSNorm, with the residual addition that comes before it (Zhang and Sennrich 2019, arXiv 1910.07467).
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// x_out[r,c] = x[r,c] + delta[r,c]                                    (delta empty: no addition, x_out unused)
// y[r,c]     = x_out[r,c] · inv_rms[r] · gamma[c],   inv_rms[r] = 1 / sqrt(mean_c(x_out[r,c]²) + eps)
//
//   x, delta, x_out, y  [rows, cols]  f32 | bf16, all alike; x_out may be x, y may be delta
//   gamma               [cols]        the same dtype
//   inv_rms             [rows]        f32
//
// With bf16, x_out is rounded first and y computed from the rounded value. Sums in f32.
// Throws Error: shape or dtype mismatch; eps <= 0.
void rms_norm(Stream& stream, Tensor x, Tensor delta, Tensor gamma, float eps, Tensor x_out, Tensor y, Tensor inv_rms);

// y from x and inv_rms again: what the backward pass needs instead of a stored y.
void rms_norm_apply(Stream& stream, Tensor x, Tensor gamma, Tensor inv_rms, Tensor y);

// dx[r,c]  += inv_rms[r] · (gamma[c]·dy[r,c] − x̂[r,c] · mean_c(gamma[c]·dy[r,c]·x̂[r,c])),  x̂ = x · inv_rms
// dgamma[c] += Σ_r dy[r,c] · x̂[r,c]
//
//   dy, x, dx  [rows, cols]  as x above; dx is added to: it holds the gradient that goes around the norm
//   dgamma     [cols]        f32
//   workspace  [rms_norm_backward_workspace(rows, cols)]  f32: on CUDA overwritten with sums of parts of the rows
//
// Sums over rows are in parts that depend on the shape alone: the same bits for any number of threads.
void rms_norm_backward(Stream& stream, Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma,
                       Tensor workspace);
int64_t rms_norm_backward_workspace(int64_t rows, int64_t cols);

namespace gpu {  // after the checks
void rms_norm(Stream& stream, Tensor x, Tensor delta, Tensor gamma, float eps, Tensor x_out, Tensor y, Tensor inv_rms);
void rms_norm_apply(Stream& stream, Tensor x, Tensor gamma, Tensor inv_rms, Tensor y);
void rms_norm_backward(Stream& stream, Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma,
                       Tensor workspace);
}  // namespace gpu

}  // namespace notellm

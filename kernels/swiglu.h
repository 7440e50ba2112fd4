// SwiGLU (Shazeer 2020, arXiv 2002.05202): the gate and up projections stand side by side in one buffer.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// y[r,c] = g·σ(g)·u,   g = gate_up[r, c], u = gate_up[r, cols + c],  σ the logistic function
//   gate_up  [rows, 2·cols]  f32 | bf16
//   y        [rows, cols]    the same dtype
void swiglu(Stream& stream, Tensor gate_up, Tensor y);

// Both throw Error(internal) for shapes or dtypes that do not fit each other.
// d_gate_up from dy, and y = swiglu(gate_up) once more, which the gradient of the product after it needs.
//   dg = dy·u·σ(g)·(1 + g·(1 − σ(g))),   du = dy·g·σ(g)
// d_gate_up may be gate_up, and y may be dy.
void swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor d_gate_up, Tensor y);

namespace gpu {  // after the checks
void swiglu(Stream& stream, Tensor gate_up, Tensor y);
void swiglu_backward(Stream& stream, Tensor dy, Tensor gate_up, Tensor d_gate_up, Tensor y);
}  // namespace gpu

}  // namespace notellm

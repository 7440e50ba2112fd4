// Token embedding.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// x[r, :] = table[tokens[r], :]
//   tokens [rows] i32;  table [vocabulary, cols] f32 | bf16;  x [rows, cols] the same dtype
// Throws Error(internal): shapes or dtypes that do not fit each other (so do all four); a token outside the table.
void embedding(Stream& stream, Tensor tokens, Tensor table, Tensor x);

// dtable[t, :] += Σ over rows with tokens[r] = t of dx[r, :], in the order of rows.
//   dtable     [vocabulary, cols] f32
//   workspace  [rows + vocabulary + 1] i32, overwritten: rows sorted by token
void embedding_backward(Stream& stream, Tensor tokens, Tensor dx, Tensor dtable, Tensor workspace);

// The rows that `rows` names, gathered; and their gradient added back, in order (a row may be named more than once).
//   x [n, cols] f32 | bf16;  rows [m] i32;  y [m, cols] the same dtype
void gather_rows(Stream& stream, Tensor x, Tensor rows, Tensor y);
void scatter_add_rows(Stream& stream, Tensor dy, Tensor rows, Tensor dx);

}  // namespace notellm

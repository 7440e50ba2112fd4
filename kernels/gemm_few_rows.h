// What gemm() does on the CPU where the left operand has few rows, as in decoding: a library's product, made for many
// rows, reads the weights at a fraction of the memory's rate then.
#pragma once

#include "runtime/tensor.h"

namespace notellm {

// Up to as many rows it is used for, where b stands transposed. In bf16 a library first copies all of b, to another
// order or widened.
constexpr int64_t few_rows = 8, few_rows_bf16 = 32;

// c[i, j] = Σ_k a[i, k] · b[j, k], with accumulate added to c
//   a [m, k], b [n, k]  both f32 or both bf16;  c [m, n]  f32, or bf16 when a is;  no size is 0
// Sums in f32, rounded once. c[i, j] depends on the rows a[i], b[j] alone, to the bit, whatever m, n and the number of
// threads. dot_bf16: by the CPU's product of bf16 pairs, where this build has it; else bf16 is widened, in registers.
void gemm_few_rows(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate, bool dot_bf16);

}  // namespace notellm

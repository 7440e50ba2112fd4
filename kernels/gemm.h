// Matrix products by oneDNN, of few rows by gemm_few_rows.h, on CUDA by cuBLASLt.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

enum class Transpose : bool { no, yes };

// c = op(a) · op(b)            or, with accumulate, c += op(a) · op(b)
//
//   op(a)  [m, k]   a is [m, k], or [k, m] with Transpose::yes
//   op(b)  [k, n]   b is [k, n], or [n, k] with Transpose::yes
//   c      [m, n]
//
// a, b: both f32 or both bf16, or b turned beforehand (kernels/gemm_panels.h: a bf16, Transpose::no and ::yes); c: f32,
// or bf16 when a is. Sums in f32. m, n or k may be 0 (k = 0: c = 0, or unchanged with accumulate). c overlaps neither a
// nor b.
// On CPUs whose bf16 dot product is slower than their f32 one, bf16 operands are widened first; the product of two bf16
// is exact in f32, so that only the order of the sum differs.
// On CUDA f32 operands are multiplied in f32 (no TF32); a stream's first product takes 32 MiB of device memory for
// cuBLASLt's workspace, and the first of a shape chooses its algorithm.
// Throws Error: shapes or dtypes that do not fit; Error(device): cuBLASLt refuses.
void gemm(Stream& stream, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, Tensor c,
          bool accumulate = false);

namespace gpu {  // after the checks; m, n and k are not 0
void gemm(Stream& stream, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, Tensor c, bool accumulate);
}

// Whether bf16 operands are widened on this CPU.
bool gemm_widens_bf16();
// Whether it multiplies them by AMX. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 denies it.
bool gemm_has_tiles();

}  // namespace notellm

// Products with a bf16 matrix that was turned once for many of them, as decoding multiplies by the same weights at
// every step.
#pragma once

#include "runtime/tensor.h"

namespace notellm {

// Whether this CPU decodes faster with panels: with AMX, since other products turn the matrix each time, and where bf16
// is widened (gemm.h), with 16 vector registers as with 32: there a library's product would copy both operands to f32,
// and gemm_few_rows.h sums across the lanes of a vector.
bool panels_pay();

// Whether a matrix [n, k] can be turned: bf16, n a multiple of the columns of a panel, which this CPU decides.
bool fits_panels(const Tensor& matrix);
// What it takes then: as many bytes as it has; with AMX as if k were a multiple of 32.
int64_t panel_bytes(const Tensor& matrix);

// The matrix b [n, k], DType::bf16_panels: panel_bytes(b), in `to`. A panel holds its columns of bᵀ as this CPU's
// products read them (gemm_panels_vectors.h, gemm_panels_tiles.h).
// Throws Error: !fits_panels(b).
Tensor to_panels(const Tensor& b, void* to);
// The same of gate over up [2·n, k], DType::bf16_gated_panels, for gemm_swiglu: a gate's column stands beside that of
// its up.
Tensor to_gated_panels(const Tensor& b, void* to);

// c[i, j] = Σ_k a[i, k] · b[j, k], with accumulate added to c
//   a [m, k] bf16, b [n, k] bf16_panels, c [m, n] f32 or bf16; m > 0, k > 0
// Sums in f32 in an order of k that the CPU decides, rounded once (a bf16 below 2^-126 perhaps to 0; with AMX products
// and sums below it too): c[i, j] depends on the rows a[i], b[j] alone, to the bit, whatever m, n and the number of
// threads.
void gemm_panels(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate);

// y[i, j] = swiglu of the products with gate and up (kernels/swiglu.h), which are neither rounded nor written:
//   g·σ(g)·u,   g = Σ_k a[i, k] · b[j, k],   u = Σ_k a[i, k] · b[n + j, k]
//   a [m, k] bf16, b [2·n, k] bf16_gated_panels, y [m, n] bf16; m > 0, k > 0
// Throws Error: shapes or dtypes that do not fit.
void gemm_swiglu(const Tensor& a, const Tensor& b, const Tensor& y);

}  // namespace notellm

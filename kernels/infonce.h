// InfoNCE over gathered negatives, in tiles: the similarity matrix never exists.
#pragma once

#include <cstdint>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// For row i of `z_rows`, which is row first_row + i of `z_all`, and j over all columns that are not masked:
//   S_ij    = z_i·z_j · e^tau − log_q_j           (no log_q: 0)
//   loss_i  = log Σ_j exp(S_ij) − S_i,pos(i),     pos(i) = (first_row + i) xor 1
//
//   z_rows          [rows, d]   f32, L2-normalised
//   z_all           [cols, d]   f32
//   log_q           [cols]      f32, or empty
//   mask_begin      [rows + 1]  i32
//   mask_columns    [mask_begin[rows]]  i32, ascending within a row: the columns that row i leaves out; itself must be
//                   among them, its positive must not
//   row_lse         [rows]      f64: log Σ_j exp(S_ij). Not f32: near e^tau = 100 its steps are 8e-6, and a good row's
//                   loss is less
//   row_positive    [rows]      f32: S_i,pos(i)
//   row_similarity  [rows]      f32: mean cosine over the row's unmasked columns without the positive (0 when there is
//                   none): the "negative similarity" of the log
//   workspace       f32, 8-byte aligned, infonce_workspace(device, rows, cols, d) elements
//
// Cosines in f32, sums over tiles in f64. Tiles are fixed by the shapes: the same bits for any number of threads, and
// on any GPU of one architecture.
// Loss and gradients to 1e-5 relative of double at e^tau = 100 (dtau: of the sum of its terms' sizes, which cancel;
// losses below 1e-6: to 1e-4).
// Throws Error: shape or dtype mismatch; d = 0; rows that are not part of the columns; odd number of columns; a mask
// that is not as above. On CUDA the mask's contents are not checked: ContrastiveMask makes them as above.
void infonce(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
             Tensor mask_columns, Tensor row_lse, Tensor row_positive, Tensor row_similarity, Tensor workspace);

// Gradient of scale·Σ_i loss_i. With P_ij = exp(S_ij − lse_i) (0 where masked) and Y the positives:
//   dz_rows_i += scale·e^tau Σ_j (P_ij − Y_ij) z_j
//   dz_all_j  += scale·e^tau Σ_i (P_ij − Y_ij) z_i          this rank's rows' part of the columns' gradient
//   *dtau     += scale Σ_ij (P_ij − Y_ij) · z_i·z_j · e^tau
// The matrix is computed again, tile by tile. dtau [1] f64. dz_rows and dz_all share no memory.
void infonce_backward(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q,
                      Tensor mask_begin, Tensor mask_columns, Tensor row_lse, float scale, Tensor dz_rows,
                      Tensor dz_all, Tensor dtau, Tensor workspace);

// On the CPU enough for one tile on each of this process's OpenMP threads; the results do not depend on it. On CUDA
// what blocks that share a tile's rows or columns pass on: up to 264 tiles of 128 × d, and some numbers a row.
int64_t infonce_workspace(Device device, int64_t rows, int64_t cols, int64_t d);

namespace gpu {  // after the checks
void infonce(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
             Tensor mask_columns, Tensor row_lse, Tensor row_positive, Tensor row_similarity, Tensor workspace);
void infonce_backward(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q,
                      Tensor mask_begin, Tensor mask_columns, Tensor row_lse, float scale, Tensor dz_rows,
                      Tensor dz_all, Tensor dtau, Tensor workspace);
int64_t infonce_workspace(int64_t rows, int64_t cols, int64_t d);
}  // namespace gpu

}  // namespace notellm

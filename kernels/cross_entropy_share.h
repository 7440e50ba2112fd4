// Token cross entropy where each rank has a share of the vocabulary's columns (Megatron-LM, arXiv 1909.08053): three
// numbers a row go from rank to rank, never the logits.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// sums[r] = {max_v logits[r,v],  Σ_v exp(logits[r,v] − that maximum),  logits[r,labels[r]]}
//
//   logits  [rows, columns]  f32
//   labels  [rows]  i32; −1: another share's, for which the third number is −∞
//   sums    [rows, 3]  f32
// Columns from `columns_in_use` on are padding; where there is no other, sums are {lowest finite, 0, −∞}.
void cross_entropy_sums(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums);

// loss and gradient of cross_entropy.h over all shares' columns; dlogits of this share's.
//   sums  [shares, rows, 3]  f32: of all shares, in the same order on all ranks
// The others as in cross_entropy.h; dlogits may be logits when f32.
void cross_entropy_share(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums, float scale,
                         Tensor loss, Tensor dlogits);

// Throw Error: shape or dtype mismatch; on the CPU, a label outside −1 … columns_in_use − 1.

namespace gpu {  // after the checks
void cross_entropy_sums(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums);
void cross_entropy_share(Stream& stream, Tensor logits, Tensor labels, int64_t columns_in_use, Tensor sums, float scale,
                         Tensor loss, Tensor dlogits);
}  // namespace gpu

}  // namespace notellm

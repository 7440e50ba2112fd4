// Token cross entropy on a tile of logits.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// loss[r]      = log Σ_v exp(logits[r,v]) − logits[r,labels[r]]
// dlogits[r,v] = scale · (softmax(logits[r])[v] − [v = labels[r]])
//
//   logits   [rows, vocabulary]  f32
//   labels   [rows]  i32
//   loss     [rows]  f32
//   dlogits  [rows, vocabulary]  f32 | bf16; may be logits when f32; empty: loss only
// Columns from `vocabulary_in_use` on are padding: they take no part and get gradient 0.
// Throws Error: shape or dtype mismatch; on the CPU, a label outside the vocabulary in use. On CUDA the labels are not
// checked: who made the batch has checked them.
void cross_entropy(Stream& stream, Tensor logits, Tensor labels, int64_t vocabulary_in_use, float scale, Tensor loss,
                   Tensor dlogits);

namespace gpu {  // after the checks
void cross_entropy(Stream& stream, Tensor logits, Tensor labels, int64_t vocabulary_in_use, float scale, Tensor loss,
                   Tensor dlogits);
}

}  // namespace notellm

// The token loss of the generated part, on label rows only, a tile of logits at a time.
#pragma once

#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

// Σ over rows of the cross entropy of  logits = hidden · headᵀ, and its gradient:
//   returns  Σ_r loss_r                              (not divided by anything)
//   d_hidden[places[r], :] += scale · d loss_r / d hidden
//   d_head                 += scale · Σ_r d loss_r / d head
//
//   hidden    [h, dim]  f32 | bf16;  d_hidden as hidden
//   places    [m] i32   the hidden row of each label, distinct; labels [m] i32
//   head      [vocabulary, dim] as hidden;  d_head the same shape, f32
//
// Columns from vocabulary_in_use on are padding. Uses the arena for one tile of logits.
double token_loss(Stream& stream, Tensor hidden, Tensor places, Tensor labels, Tensor head, int64_t vocabulary_in_use,
                  double scale, Tensor d_hidden, Tensor d_head, Arena& arena);

}  // namespace notellm

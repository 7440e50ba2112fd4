// The token loss of the generated part, on label rows only, a tile of logits at a time.
#pragma once

#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

// The cross entropy of each row of  logits = hidden · headᵀ, and the gradient of their sum:
//   loss[r]                 = loss_r                  (not divided by anything)
//   d_hidden[places[r], :] += scale · d loss_r / d hidden
//   d_head                 += scale · Σ_r d loss_r / d head
//
//   hidden    [h, dim]  f32 | bf16;  d_hidden as hidden
//   places    [m] i32   the hidden row of each label, distinct; labels [m] i32
//   loss      [m] f32
//   head      [vocabulary, dim] as hidden;  d_head the same shape, f32
//
// Columns from vocabulary_in_use on are padding. Uses the arena for one tile of logits.
//
// tensor: ranks that each have an equal part of the head's rows, one after the other (vocabulary is that of the part);
// labels are rows of the part, or −1. hidden, places and scale are the same on all of them, and so will loss be;
// d_hidden gets the rank's share of a sum. vocabulary_in_use is that of all parts. All ranks call it together.
void token_loss(Stream& stream, Communicator& tensor, Tensor hidden, Tensor places, Tensor labels, Tensor head,
                int64_t vocabulary_in_use, double scale, Tensor d_hidden, Tensor d_head, Tensor loss, Arena& arena);
// Bytes of arena that it uses at most for so many labels; vocabulary: of the part.
int64_t token_loss_arena_bytes(Device device, DType compute, int64_t dim, int64_t vocabulary, int tensor_ranks,
                               int64_t labels);

}  // namespace notellm

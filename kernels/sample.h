// The next token of each row of logits: the likeliest one, or one drawn at random. No sorting.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// Which columns of each row may be chosen: all of the first `columns`, or, where `offsets` is not empty, those of a
// list.
//   offsets  [rows + 1]  i32   row r may choose tokens[offsets[r]] … tokens[offsets[r + 1] − 1], ascending
//   tokens   [n]         i32   columns
struct Candidates {
  int64_t columns;
  Tensor offsets, tokens;
};

struct Sampling {
  float temperature = 1;  // > 0
  int64_t top_k = 0;      // ≥ 0; 0: all candidates
  float top_p = 1;        // 0 < top_p ≤ 1
};

// token[r]   = the candidate with the largest logit; of equal ones the first
// largest[r] = its logit
//   logits   [rows, vocabulary]  f32
//   token    [rows]  i32
//   largest  [rows]  f32
void argmax(Stream& stream, Tensor logits, const Candidates& candidates, Tensor token, Tensor largest);

// token[r] = the first candidate v, in the order of columns, with  Σ_{x ≤ v} w(x) > uniform[r] · Σ_x w(x)
//   w(v) = ⌊2^32 · exp((logits[r, v] − the largest candidate's) / temperature)⌋ of those that are kept, else 0
//   kept are, first, candidates whose logit is not below the top_k-th largest; of these, those whose logit is not below
//   that of the last of the largest ones that together have at least top_p of their w
// Equal logits are kept together, as transformers keep them at top_k (TopKLogitsWarper). The sums are whole numbers:
// the same in any order. The vocabulary has at most 2^20 columns.
//   logits, token  as above
//   uniform  [rows]  f32 in [0, 1)
void sample(Stream& stream, Tensor logits, const Candidates& candidates, const Sampling& sampling, Tensor uniform,
            Tensor token);

// Both give token −1 where a row has no candidate, or its largest logit is no finite number; a NaN counts as the
// largest.
// Throw Error: shape or dtype mismatch; more columns than the vocabulary; a sampling number outside its bounds; on the
// CPU, a candidate outside the columns, or offsets that do not ascend from 0 to n.

namespace gpu {  // after the checks
void argmax(Stream& stream, Tensor logits, const Candidates& candidates, Tensor token, Tensor largest);
void sample(Stream& stream, Tensor logits, const Candidates& candidates, const Sampling& sampling, Tensor uniform,
            Tensor token);
}  // namespace gpu

}  // namespace notellm

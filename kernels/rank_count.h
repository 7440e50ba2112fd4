// Ranks of targets in a tile of scores, without sorting (evaluation/ranking.h).
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// Of each question, the scores in its query's row that are higher than its target's, and those that equal it:
//   counts[i, 0] += #{x : not s(i, x) <= target[i]},  counts[i, 1] += #{x : s(i, x) = target[i]}
//   s(i, x) = scores[rows[i], x] + prior[x],   x one of the first `columns` columns that stands for neither of
//                                              left_out[i]; column x stands for item `first` + x
// NaN counts as higher, against anything.
//
//   scores    [queries, columns or more]  f32
//   prior     [columns]  f32, or empty: 0
//   rows      [n]  i32   the row of the question's query
//   target    [n]  f32
//   left_out  [n, 2]  i32  items that do not count: the query itself, the target
//   counts    [n, 2]  i32
void rank_count(Stream& stream, Tensor scores, int64_t columns, Tensor prior, int64_t first, Tensor rows, Tensor target,
                Tensor left_out, Tensor counts);

// target[i] = scores[rows[i], i] + prior[i]: the targets' own scores, from a tile whose column i is question i's
// target.
//   scores [queries, columns ≥ n];  prior, rows, target [n] as above
void pick_scores(Stream& stream, Tensor scores, Tensor prior, Tensor rows, Tensor target);

// Throw Error: shape or dtype mismatch; on the CPU, a row out of range.

namespace gpu {  // after the checks
void rank_count(Stream& stream, Tensor scores, int64_t columns, Tensor prior, int64_t first, Tensor rows, Tensor target,
                Tensor left_out, Tensor counts);
void pick_scores(Stream& stream, Tensor scores, Tensor prior, Tensor rows, Tensor target);
}  // namespace gpu

}  // namespace notellm

// Rows by index: token embedding, gathered rows, and the gradients of both.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// On the CPU an index outside its table throws Error(internal), as do shapes or dtypes that do not fit each other. On
// CUDA what device memory holds is not checked: who made the indices has checked them.

// x[r, :] = table[tokens[r], :];  zeros where tokens[r] = −1: a token of another rank's part of the table
//   tokens [rows] i32;  table [vocabulary, cols] f32 | bf16;  x [rows, cols] the same dtype
void embedding(Stream& stream, Tensor tokens, Tensor table, Tensor x);

// y[r, :] = x[rows[r], :], or zeros for −1: the same op under the name of its other use.
//   x [n, cols] f32 | bf16;  rows [m] i32;  y [m, cols] the same dtype
void gather_rows(Stream& stream, Tensor x, Tensor rows, Tensor y);

// Rows by the row that they are added to.
//   target [u]      i32  distinct
//   begin  [u + 1]  i32  group g is rows[begin[g]] … rows[begin[g + 1] − 1]
//   rows   [n]      i32  rows of dy, each at most once
// begin and rows empty: group g is row g alone, of all rows of dy.
struct RowGroups {
  Tensor target, begin, rows;
};

// dx[target[g], :] += Σ_k dy[rows[k], :],  k = begin[g] … begin[g + 1] − 1: the gradient of embedding and gather_rows
//   dy  [n, cols]  f32 | bf16
//   dx  [m, cols]  f32, or dy's dtype
// Sums in f32 in a fixed order, that of k on the CPU, rounded once.
void scatter_add_rows(Stream& stream, Tensor dy, const RowGroups& groups, Tensor dx);

// The groups of a list with the target of each row, made on the host: targets ascending, the rows of each ascending.
class GroupedRows {
 public:
  void set(std::span<const int32_t> targets);  // −1: the row is in no group
  // Views of the lists below, until the next set().
  RowGroups view() const;

 private:
  std::vector<int32_t> target_, begin_, rows_, place_;
};

namespace gpu {  // after the checks
void gather_rows(Stream& stream, Tensor x, Tensor rows, Tensor y);
void scatter_add_rows(Stream& stream, Tensor dy, const RowGroups& groups, Tensor dx);
}  // namespace gpu

}  // namespace notellm

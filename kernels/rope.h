// Rotary position embedding in the Hugging Face layout: element i of a head pairs with element i + head_dim/2
// (Su et al. 2021, arXiv 2104.09864; transformers' rotate_half).
#pragma once

#include <span>
#include <vector>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// [head_dim/2] theta^(−2i/head_dim): the angle that pair i of a head turns by from one position to the next. Throws
// Error: odd head_dim.
std::vector<double> rope_frequencies(double theta, int64_t head_dim);

// table[p, 0, i] = cos(p·frequencies[i]), table[p, 1, i] = sin(…), computed in double.
//   table  [positions, 2, frequencies]  f32
void rope_table(std::span<const double> frequencies, Tensor table);

// In place, for the first `heads` heads of each row: x[2i-th pair] rotated by the row's position.
//   x          [rows, columns]  f32 | bf16; columns ≥ heads·head_dim; what is beyond them is left alone
//   positions  [rows]           i32, each below table's positions (not checked on CUDA: its maker has)
//   direction  +1: forward; −1: backward (the inverse rotation, which is the transpose)
// Throws Error: shape or dtype mismatch, odd head_dim.
void rope(Stream& stream, Tensor x, Tensor positions, Tensor table, int64_t heads, int64_t head_dim, int direction);

namespace gpu {  // after the checks
void rope(Stream& stream, Tensor x, Tensor positions, Tensor table, int64_t heads, int64_t head_dim, int direction);
}

}  // namespace notellm

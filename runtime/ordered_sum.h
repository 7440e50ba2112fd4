// Sums whose order is fixed.
#pragma once

#include <span>

#include "runtime/tensor.h"

namespace notellm {

// out[i] := ((parts[0][i] + parts[1][i]) + parts[2][i]) + …, n elements of `dtype`; bf16 in f32, rounded once. out may
// be one of the parts.
void sum_in_order(DType dtype, std::span<const char* const> parts, int64_t n, char* out);

}  // namespace notellm

// Conversion between element types.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// to[i] = from[i] in to's dtype: f32 → bf16 (round to nearest even), bf16 → f32 (exact), or a copy.
//   from, to  the same number of elements, f32 | bf16; they share no memory
// Throws Error: sizes or dtypes that do not fit.
void convert(Stream& stream, Tensor from, Tensor to);

namespace gpu {  // after the checks
void convert(Stream& stream, Tensor from, Tensor to);
}

}  // namespace notellm

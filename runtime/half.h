// f16, a type of files alone, to f32 and back.
#pragma once

#include "runtime/dtype.h"

namespace notellm {

// Exact.
float to_float(f16 value);
// Rounds to nearest even; beyond 65504 it becomes infinite.
f16 to_f16(float value);

}  // namespace notellm

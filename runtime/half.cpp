#include "runtime/half.h"

// By the compiler's type, which .cu files, that read dtype.h too, need not know.
namespace notellm {

float to_float(f16 value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }

f16 to_f16(float value) { return {std::bit_cast<uint16_t>(static_cast<_Float16>(value))}; }

}  // namespace notellm

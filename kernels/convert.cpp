#include "kernels/convert.h"

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

template <class From, class To>
void convert_all(const Tensor& from, const Tensor& to) {
  const From* x = from.as<From>();
  To* y = to.as<To>();
  const int64_t size = from.size();
#pragma omp parallel for simd schedule(static) if (size > parallel_elements)
  for (int64_t i = 0; i < size; ++i) y[i] = rounded<To>(static_cast<float>(x[i]));
}

}  // namespace

void convert(Stream& stream, Tensor from, Tensor to) {
  NOTELLM_CHECK(from.size() == to.size(), "convert: {} to {}", describe(from), describe(to));
  const auto is = [](const Tensor& t, DType dtype) { return t.dtype == dtype; };
  NOTELLM_CHECK((is(from, DType::f32) || is(from, DType::bf16)) && (is(to, DType::f32) || is(to, DType::bf16)),
                "convert: {} to {}", describe(from), describe(to));
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::convert(stream, from, to);
  if (is(from, DType::f32))
    return is(to, DType::f32) ? convert_all<float, float>(from, to) : convert_all<float, bf16>(from, to);
  return is(to, DType::f32) ? convert_all<bf16, float>(from, to) : convert_all<bf16, bf16>(from, to);
}

}  // namespace notellm

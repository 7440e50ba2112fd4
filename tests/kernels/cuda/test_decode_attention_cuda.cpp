// One new token's attention on CUDA against plain loops in double.
#include "kernels/decode_attention.h"
#include "tests/kernels/decode_cases.h"
#include "tests/support/expect_error.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::OnGpu;

template <class T>
void against_double() {
  Stream stream(Device::cuda);
  for (const test::DecodeCase<T>& c : test::decode_cases<T>()) {
    SCOPED_TRACE(c.name());
    const OnGpu<T> q(stream, c.q), kv(stream, c.kv), cache(stream, c.cache), o(stream, std::vector<T>(c.q.size()));
    const OnGpu<int32_t> runs(stream, c.runs), place(stream, c.place);
    const int64_t n = c.queries();
    decode_attention(stream, q.tensor({n, c.heads, c.head_dim}), kv.tensor({n, 2 * c.kv_heads, c.head_dim}),
                     cache.tensor({c.rows, 2 * c.kv_heads, c.head_dim}), runs.tensor({n, 3, 2}), place.tensor({n}),
                     o.tensor({n, c.heads, c.head_dim}));
    c.expect_attention(o.download());
    c.expect_cache(cache.download());
  }
}
TEST(CudaDecodeAttention, AgainstDouble) {
  against_double<float>();
  against_double<bf16>();
}

TEST(CudaDecodeAttention, FarFromZero) {
  Stream stream(Device::cuda);
  test::DecodeCase<float> c(2, 1, 8, {40});
  for (float& x : c.q) x *= 600;  // e^(a warp's largest score − another's) may be no f32
  const OnGpu<float> q(stream, c.q), kv(stream, c.kv), cache(stream, c.cache), o(stream, c.q);
  const OnGpu<int32_t> runs(stream, c.runs), place(stream, c.place);
  decode_attention(stream, q.tensor({1, 2, 8}), kv.tensor({1, 2, 8}), cache.tensor({c.rows, 2, 8}),
                   runs.tensor({1, 3, 2}), place.tensor({1}), o.tensor({1, 2, 8}));
  c.expect_attention(o.download());
}

TEST(CudaDecodeAttention, Errors) {
  Stream stream(Device::cuda);
  const OnGpu<float> q(stream, std::vector<float>(260)), kv(stream, std::vector<float>(520));
  const OnGpu<int32_t> runs(stream, {0, 0}), place(stream, {0});
  EXPECT_ERROR(internal, "head_dim 260, but CUDA has at most 256",
               decode_attention(stream, q.tensor({1, 1, 260}), kv.tensor({1, 2, 260}), kv.tensor({1, 2, 260}),
                                runs.tensor({1, 1, 2}), place.tensor({1}), q.tensor({1, 1, 260})));
}

}  // namespace
}  // namespace notellm

// RoPE on CUDA against double: heads of any even size, both directions, columns beyond the heads.
#include "kernels/rope.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::OnGpu;

template <class T>
class CudaRope : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaRope, Types);

template <class T>
void check(int64_t rows, int64_t heads, int64_t head_dim, int64_t beyond, int direction) {
  SCOPED_TRACE(fmt::format("{} rows, {} heads of {}, {} beyond, {}", rows, heads, head_dim, beyond, direction));
  Stream stream(Device::cuda);
  const int64_t known = 50, half = head_dim / 2, cols = heads * head_dim + beyond;
  const std::vector<T> before = cast<T>(normal(rows * cols, 1));
  const std::vector<int32_t> positions = test::integers(rows, known, 2);
  std::vector<float> table(known * head_dim);
  rope_table(rope_frequencies(10000.0f, head_dim), test::view(table, {known, 2, half}));
  std::vector<T> x;
  const auto run = [&] {
    const OnGpu<T> x_gpu(stream, before);
    const OnGpu<int32_t> positions_gpu(stream, positions);
    const OnGpu<float> table_gpu(stream, table);
    rope(stream, x_gpu.tensor({rows, cols}), positions_gpu.tensor({rows}), table_gpu.tensor({known, 2, half}), heads,
         head_dim, direction);
    x = x_gpu.download();
    return test::bytes_of(x);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  const std::vector<double> from = test::widen(before);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < half; ++i) {
        const double angle =
            direction * positions[r] * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        const int64_t a = r * cols + h * head_dim + i, b = a + half;
        const double magnitude = std::fabs(from[a]) + std::fabs(from[b]);
        test::expect_close(x[a], from[a] * std::cos(angle) - from[b] * std::sin(angle), magnitude, 4);
        test::expect_close(x[b], from[b] * std::cos(angle) + from[a] * std::sin(angle), magnitude, 4);
      }
    for (int64_t c = heads * head_dim; c < cols; ++c)
      ASSERT_EQ(static_cast<float>(x[r * cols + c]), static_cast<float>(before[r * cols + c]));
  }
}

TYPED_TEST(CudaRope, AgainstDouble) {
  for (int direction : {1, -1})
    for (int64_t head_dim : {2, 6, 32, 64, 128}) {
      check<TypeParam>(0, 2, head_dim, 0, direction);
      check<TypeParam>(1, 1, head_dim, 0, direction);
      check<TypeParam>(3, 0, head_dim, 5, direction);
      check<TypeParam>(70, 3, head_dim, 2 * head_dim, direction);
      check<TypeParam>(5, 4, head_dim, 1, direction);  // rows that do not begin at 16 bytes
    }
}

}  // namespace
}  // namespace notellm

// SwiGLU on CUDA against double: packs and ragged rows, in place, far from zero, the same bits again.
#include "kernels/swiglu.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::OnGpu;

template <class T>
class CudaSwiglu : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaSwiglu, Types);

template <class T>
void check(int64_t rows, int64_t cols, float deviation) {
  SCOPED_TRACE(fmt::format("[{}, {}] {}", rows, cols, deviation));
  Stream stream(Device::cuda);
  const std::vector<T> gate_up = cast<T>(normal(rows * 2 * cols, 1, deviation)), dy = cast<T>(normal(rows * cols, 2));
  std::vector<T> y, d, again;
  const auto run = [&] {
    const OnGpu<T> gate_up_gpu(stream, gate_up), dy_gpu(stream, dy), y_gpu(stream, std::vector<T>(rows * cols, T(NAN)));
    const Tensor both = gate_up_gpu.tensor({rows, 2 * cols}), gradient = dy_gpu.tensor({rows, cols});
    swiglu(stream, both, y_gpu.tensor({rows, cols}));
    swiglu_backward(stream, gradient, both, both, gradient);
    y = y_gpu.download();
    d = gate_up_gpu.download();
    again = dy_gpu.download();
    return test::bytes_of(y, d);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  EXPECT_TRUE(test::bytes_of(again) == test::bytes_of(y)) << "swiglu_backward repeats y";
  const std::vector<double> from = test::widen(gate_up), gradient = test::widen(dy);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t at = r * 2 * cols + c;
      const double g = from[at], u = from[at + cols], s = 1 / (1 + std::exp(-g)), dv = gradient[r * cols + c];
      test::expect_close(y[r * cols + c], g * s * u, std::fabs(g * s * u), 8);
      test::expect_close(d[at], dv * u * s * (1 + g * (1 - s)), std::fabs(dv * u * s) * (1 + std::fabs(g)), 12);
      test::expect_close(d[at + cols], dv * g * s, std::fabs(dv * g * s), 8);
    }
}

TYPED_TEST(CudaSwiglu, AgainstDouble) {
  for (float deviation : {1.0f, 20.0f})
    for (int64_t rows : {0, 1, 3, 50})
      for (int64_t cols : {1, 3, 64, 65, 100, 300}) check<TypeParam>(rows, cols, deviation);
  check<TypeParam>(2, 2056, 1.0f);  // more packs than a block has threads
  check<TypeParam>(2, 1030, 1.0f);
}

TEST(CudaSwiglu, FarFromZero) {
  Stream stream(Device::cuda);
  const OnGpu<float> gate_up(stream, {1e4f, -1e4f, 100, -100, /* up: */ 1, 1, 1, 1}), dy(stream, {1, 1, 1, 1});
  swiglu_backward(stream, dy.tensor({1, 4}), gate_up.tensor({1, 8}), gate_up.tensor({1, 8}), dy.tensor({1, 4}));
  const std::vector<float> y = dy.download(), d = gate_up.download();
  EXPECT_EQ(y[0], 1e4f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_EQ(y[2], 100.0f);
  EXPECT_NEAR(y[3], 0.0, 1e-36);
  EXPECT_EQ(d[0], 1.0f);
  EXPECT_EQ(d[1], 0.0f);
  EXPECT_EQ(d[4], 1e4f);
  EXPECT_EQ(d[5], 0.0f);
}

}  // namespace
}  // namespace notellm

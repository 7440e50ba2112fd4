// RMSNorm on CUDA against double: packs and ragged rows, rows longer than the registers hold, the same bits again.
#include "kernels/rms_norm.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::bytes_of;
using test::cast;
using test::expect_close;
using test::normal;
using test::OnGpu;
using test::widen;

constexpr float eps = 1e-5f;

template <class T>
class CudaRmsNorm : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaRmsNorm, Types);

template <class T>
void check_forward(int64_t rows, int64_t cols, bool add) {
  SCOPED_TRACE(fmt::format("[{}, {}] {}", rows, cols, add));
  Stream stream(Device::cuda);
  const std::vector<T> x = cast<T>(normal(rows * cols, 1)), delta = cast<T>(normal(rows * cols, 2)),
                       gamma = cast<T>(normal(cols, 3)), nothing(rows * cols, T(NAN));
  const OnGpu<T> x_gpu(stream, x), delta_gpu(stream, delta), gamma_gpu(stream, gamma), sum_gpu(stream, nothing),
      y_gpu(stream, nothing), again_gpu(stream, nothing);
  const OnGpu<float> inverse_gpu(stream, std::vector<float>(rows, NAN));
  const auto matrix = [&](const OnGpu<T>& t) { return t.tensor({rows, cols}); };
  const Tensor scale = gamma_gpu.tensor({cols}), inverses = inverse_gpu.tensor({rows}), none;
  rms_norm(stream, matrix(x_gpu), add ? matrix(delta_gpu) : none, scale, eps, add ? matrix(sum_gpu) : none,
           matrix(y_gpu), inverses);
  const std::vector<T> sum = add ? sum_gpu.download() : x, y = y_gpu.download();
  const std::vector<float> inv_rms = inverse_gpu.download();
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      if (add) {
        ASSERT_EQ(static_cast<float>(sum[i]),
                  static_cast<float>(T(static_cast<float>(x[i]) + static_cast<float>(delta[i]))));
      }
      squares += std::pow(static_cast<double>(static_cast<float>(sum[i])), 2);
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
    expect_close(inv_rms[r], inverse, inverse, static_cast<double>(cols) + 5);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double exact = static_cast<float>(sum[i]) * inverse * static_cast<double>(static_cast<float>(gamma[c]));
      expect_close(y[i], exact, std::fabs(exact), static_cast<double>(cols) + 7);
      if (std::is_same_v<T, bf16>) {  // rounded once, where expect_close allows twice
        const double f32 = (static_cast<double>(cols) + 7) * test::f32_roundoff;
        ASSERT_NEAR(static_cast<float>(y[i]), exact, (test::bf16_roundoff * (1 + f32) + f32) * std::fabs(exact));
      }
    }
  }
  // x_out on x, y on delta; and y from x_out and inv_rms.
  rms_norm_apply(stream, add ? matrix(sum_gpu) : matrix(x_gpu), scale, inverses, matrix(again_gpu));
  rms_norm(stream, matrix(x_gpu), add ? matrix(delta_gpu) : none, scale, eps, add ? matrix(x_gpu) : none,
           matrix(delta_gpu), inverses);
  EXPECT_TRUE(bytes_of(again_gpu.download()) == bytes_of(y)) << "rms_norm_apply repeats y";
  EXPECT_TRUE(bytes_of(x_gpu.download(), delta_gpu.download()) == bytes_of(sum, y)) << "the same bits again";
}

template <class T>
void check_backward(int64_t rows, int64_t cols) {
  SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
  Stream stream(Device::cuda);
  const std::vector<T> dy = cast<T>(normal(rows * cols, 4)), x = cast<T>(normal(rows * cols, 5, 3.0f)),
                       gamma = cast<T>(normal(cols, 6)), dx = cast<T>(normal(rows * cols, 7));
  std::vector<float> inv_rms = normal(rows, 8), dgamma = normal(cols, 9);
  for (float& value : inv_rms) value = std::fabs(value) + 0.1f;
  std::vector<T> dx_result;
  std::vector<float> dgamma_result;
  const auto run = [&] {
    const OnGpu<T> dy_gpu(stream, dy), x_gpu(stream, x), gamma_gpu(stream, gamma), dx_gpu(stream, dx);
    const OnGpu<float> inverse_gpu(stream, inv_rms), dgamma_gpu(stream, dgamma);
    const int64_t size = rms_norm_backward_workspace(rows, cols);
    const Buffer workspace(size * 4 + 16, Memory::device);
    rms_norm_backward(stream, dy_gpu.tensor({rows, cols}), x_gpu.tensor({rows, cols}), gamma_gpu.tensor({cols}),
                      inverse_gpu.tensor({rows}), dx_gpu.tensor({rows, cols}), dgamma_gpu.tensor({cols}),
                      workspace.tensor(DType::f32, {size}));
    dx_result = dx_gpu.download();
    dgamma_result = dgamma_gpu.download();
    return bytes_of(dx_result) + bytes_of(dgamma_result);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  const std::vector<double> d = widen(dy), from = widen(x), scale = widen(gamma), before = widen(dx);
  std::vector<double> gamma_exact = widen(dgamma), gamma_magnitude(cols);
  for (int64_t c = 0; c < cols; ++c) gamma_magnitude[c] = std::fabs(gamma_exact[c]);
  for (int64_t r = 0; r < rows; ++r) {
    const double inverse = inv_rms[r];
    double dot = 0, dot_magnitude = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const double normed = d[r * cols + c] * from[r * cols + c] * inverse;
      dot += scale[c] * normed / static_cast<double>(cols);
      dot_magnitude += std::fabs(scale[c] * normed) / static_cast<double>(cols);
      gamma_exact[c] += normed;
      gamma_magnitude[c] += std::fabs(normed);
    }
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double own = inverse * scale[c] * d[i], along = inverse * from[i] * inverse;
      expect_close(dx_result[i], before[i] + own - along * dot,
                   std::fabs(before[i]) + std::fabs(own) + std::fabs(along) * dot_magnitude,
                   static_cast<double>(cols) + 11);
    }
  }
  for (int64_t c = 0; c < cols; ++c)
    expect_close(dgamma_result[c], gamma_exact[c], gamma_magnitude[c], static_cast<double>(rows) + 4);
}

// 9,000 columns: more than registers hold, in packs; 1,031: the same, element by element.
const int64_t some_cols[] = {1, 3, 64, 65, 100, 192, 520};

TYPED_TEST(CudaRmsNorm, ForwardAgainstDouble) {
  for (bool add : {false, true}) {
    check_forward<TypeParam>(0, 64, add);
    for (int64_t cols : some_cols)
      for (int64_t rows : {1, 19}) check_forward<TypeParam>(rows, cols, add);
    check_forward<TypeParam>(3, 1031, add);
    check_forward<TypeParam>(3, 9000, add);
    check_forward<TypeParam>(4100, 16, add);  // several rows for each warp
    check_forward<TypeParam>(2050, 260, add);
  }
}

TYPED_TEST(CudaRmsNorm, BackwardAgainstDouble) {
  check_backward<TypeParam>(0, 64);
  for (int64_t cols : some_cols)
    for (int64_t rows : {1, 19, 70}) check_backward<TypeParam>(rows, cols);
  check_backward<TypeParam>(19, 1031);
  check_backward<TypeParam>(19, 9000);
  check_backward<TypeParam>(9000, 8);  // the most parts
}

TEST(CudaRmsNorm, ExtremeRows) {
  Stream stream(Device::cuda);
  const std::vector<float> x{0, 0, 1e15f, -1e15f, 1e-20f, 0, 1e4f, 1e4f};
  const OnGpu<float> x_gpu(stream, x), gamma(stream, std::vector<float>{1, 1}), y_gpu(stream, x),
      inverse(stream, std::vector<float>(4, NAN));
  rms_norm(stream, x_gpu.tensor({4, 2}), {}, gamma.tensor({2}), 1e-6f, {}, y_gpu.tensor({4, 2}), inverse.tensor({4}));
  const std::vector<float> y = y_gpu.download();
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_NEAR(y[2], 1.0f, 8 * test::f32_roundoff);
  EXPECT_NEAR(y[3], -1.0f, 8 * test::f32_roundoff);
  EXPECT_NEAR(y[4], 1e-17f, 1e-17 * 8 * test::f32_roundoff);
  EXPECT_NEAR(y[6], 1.0f, 8 * test::f32_roundoff);
}

}  // namespace
}  // namespace notellm

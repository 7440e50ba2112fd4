#include <numeric>

#include "kernels/rms_norm.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::cast;
using test::expect_close;
using test::normal;
using test::view;
using test::widen;

constexpr float eps = 1e-5f;
Stream stream;

// rms_norm_backward with its workspace.
void backward(Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma) {
  std::vector<float> workspace(rms_norm_backward_workspace(x.rows(), x.cols()));
  rms_norm_backward(stream, dy, x, gamma, inv_rms, dx, dgamma, Tensor::of(workspace.data(), {std::ssize(workspace)}));
}

TEST(RmsNorm, ByHand) {
  // x + delta = [1, 7]: mean of squares 25, + 11 = 36, square root 6.
  std::vector<float> x{0, 3}, delta{1, 4}, gamma{6, 2}, sum(2), y(2), inv_rms(1);
  rms_norm(stream, view(x, {1, 2}), view(delta, {1, 2}), view(gamma, {2}), 11.0f, view(sum, {1, 2}), view(y, {1, 2}),
           view(inv_rms, {1}));
  EXPECT_EQ(sum, (std::vector<float>{1, 7}));
  EXPECT_FLOAT_EQ(inv_rms[0], 1.0f / 6.0f);
  EXPECT_FLOAT_EQ(y[0], 1.0f);
  EXPECT_FLOAT_EQ(y[1], 7.0f / 3.0f);
  // dy = [1, 0]: γ·dy = [6, 0], x̂ = [1/6, 7/6], mean(γ·dy·x̂) = 1/2; dx = ([6, 0] − x̂/2) / 6; dγ = dy·x̂.
  std::vector<float> dy{1, 0}, dx{10, 20}, dgamma{100, 200};
  backward(view(dy, {1, 2}), view(sum, {1, 2}), view(gamma, {2}), view(inv_rms, {1}), view(dx, {1, 2}),
           view(dgamma, {2}));
  EXPECT_FLOAT_EQ(dx[0], 10.0f + (6.0f - 1.0f / 12.0f) / 6.0f);
  EXPECT_FLOAT_EQ(dx[1], 20.0f - 7.0f / 72.0f);
  EXPECT_FLOAT_EQ(dgamma[0], 100.0f + 1.0f / 6.0f);
  EXPECT_FLOAT_EQ(dgamma[1], 200.0f);
}

template <class T>
class RmsNormOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(RmsNormOf, Types);

template <class T>
void check_forward(int64_t rows, int64_t cols, bool add) {
  SCOPED_TRACE(fmt::format("[{}, {}] {}", rows, cols, add));
  std::vector<T> x = cast<T>(normal(rows * cols, 1)), delta = cast<T>(normal(rows * cols, 2)),
                 gamma = cast<T>(normal(cols, 3));
  std::vector<T> sum(rows * cols), y(rows * cols), again(rows * cols);
  std::vector<float> inv_rms(rows);
  const Tensor none;
  rms_norm(stream, view(x, {rows, cols}), add ? view(delta, {rows, cols}) : none, view(gamma, {cols}), eps,
           add ? view(sum, {rows, cols}) : none, view(y, {rows, cols}), view(inv_rms, {rows}));
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      if (add)
        ASSERT_EQ(static_cast<float>(sum[i]),
                  static_cast<float>(T(static_cast<float>(x[i]) + static_cast<float>(delta[i]))));
      else
        sum[i] = x[i];
      squares += std::pow(static_cast<double>(static_cast<float>(sum[i])), 2);
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
    expect_close(inv_rms[r], inverse, inverse, static_cast<double>(cols) + 5);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double exact = static_cast<float>(sum[i]) * inverse * static_cast<double>(static_cast<float>(gamma[c]));
      expect_close(y[i], exact, std::fabs(exact), static_cast<double>(cols) + 7);
    }
  }
  rms_norm_apply(stream, view(sum, {rows, cols}), view(gamma, {cols}), view(inv_rms, {rows}),
                 view(again, {rows, cols}));
  EXPECT_TRUE(test::bytes_of(again) == test::bytes_of(y)) << "rms_norm_apply repeats y";
}

TYPED_TEST(RmsNormOf, ForwardAgainstDouble) {
  for (int64_t rows : {0, 1, 5, 200})
    for (int64_t cols : {1, 7, 64, 192, 301})
      for (bool add : {false, true}) check_forward<TypeParam>(rows, cols, add);
}

TYPED_TEST(RmsNormOf, InPlace) {
  const int64_t rows = 9, cols = 70;
  std::vector<TypeParam> x = cast<TypeParam>(normal(rows * cols, 1)), delta = cast<TypeParam>(normal(rows * cols, 2));
  std::vector<TypeParam> gamma = cast<TypeParam>(normal(cols, 3)), sum(rows * cols), y(rows * cols);
  std::vector<float> inv_rms(rows);
  rms_norm(stream, view(x, {rows, cols}), view(delta, {rows, cols}), view(gamma, {cols}), eps, view(sum, {rows, cols}),
           view(y, {rows, cols}), view(inv_rms, {rows}));
  rms_norm(stream, view(x, {rows, cols}), view(delta, {rows, cols}), view(gamma, {cols}), eps, view(x, {rows, cols}),
           view(delta, {rows, cols}), view(inv_rms, {rows}));
  EXPECT_TRUE(test::bytes_of(x, delta) == test::bytes_of(sum, y));
}

template <class T>
void check_backward(int64_t rows, int64_t cols) {
  SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
  std::vector<T> dy = cast<T>(normal(rows * cols, 4)), x = cast<T>(normal(rows * cols, 5, 3.0f)),
                 gamma = cast<T>(normal(cols, 6));
  std::vector<T> dx = cast<T>(normal(rows * cols, 7));
  std::vector<float> inv_rms = normal(rows, 8), dgamma = normal(cols, 9);
  for (float& value : inv_rms) value = std::fabs(value) + 0.1f;
  const std::vector<double> d = widen(dy), from = widen(x), scale = widen(gamma), before = widen(dx),
                            gamma_before = widen(dgamma);
  backward(view(dy, {rows, cols}), view(x, {rows, cols}), view(gamma, {cols}), view(inv_rms, {rows}),
           view(dx, {rows, cols}), view(dgamma, {cols}));
  std::vector<double> gamma_exact = gamma_before, gamma_magnitude(cols);
  for (int64_t c = 0; c < cols; ++c) gamma_magnitude[c] = std::fabs(gamma_before[c]);
  for (int64_t r = 0; r < rows; ++r) {
    const double inverse = inv_rms[r];
    double dot = 0, dot_magnitude = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const double term = scale[c] * d[r * cols + c] * from[r * cols + c] * inverse;
      dot += term / static_cast<double>(cols);
      dot_magnitude += std::fabs(term) / static_cast<double>(cols);
      gamma_exact[c] += d[r * cols + c] * from[r * cols + c] * inverse;
      gamma_magnitude[c] += std::fabs(d[r * cols + c] * from[r * cols + c] * inverse);
    }
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double own = inverse * scale[c] * d[i], along = inverse * from[i] * inverse;
      expect_close(dx[i], before[i] + own - along * dot,
                   std::fabs(before[i]) + std::fabs(own) + std::fabs(along) * dot_magnitude,
                   static_cast<double>(cols) + 10);
    }
  }
  for (int64_t c = 0; c < cols; ++c)
    expect_close(dgamma[c], gamma_exact[c], gamma_magnitude[c], static_cast<double>(rows) + 4);
}

TYPED_TEST(RmsNormOf, BackwardAgainstDouble) {
  for (int64_t rows : {0, 1, 5, 128, 300})
    for (int64_t cols : {1, 7, 64, 192, 301}) check_backward<TypeParam>(rows, cols);
}

TYPED_TEST(RmsNormOf, SameBitsForAnyThreads) {
  const int64_t rows = 300, cols = 193;
  test::expect_same_bits([&] {
    std::vector<TypeParam> x = cast<TypeParam>(normal(rows * cols, 1)), delta = cast<TypeParam>(normal(rows * cols, 2));
    std::vector<TypeParam> gamma = cast<TypeParam>(normal(cols, 3)), y(rows * cols), dx = y;
    std::vector<float> inv_rms(rows), dgamma(cols);
    rms_norm(stream, view(x, {rows, cols}), view(delta, {rows, cols}), view(gamma, {cols}), eps, view(x, {rows, cols}),
             view(y, {rows, cols}), view(inv_rms, {rows}));
    backward(view(delta, {rows, cols}), view(x, {rows, cols}), view(gamma, {cols}), view(inv_rms, {rows}),
             view(dx, {rows, cols}), view(dgamma, {cols}));
    return test::bytes_of(x, y, dx) + test::bytes_of(inv_rms, dgamma);
  });
}

TEST(RmsNorm, GradientIsTheDerivative) {
  const int64_t rows = 3, cols = 5;
  std::vector<float> x = normal(rows * cols, 1), gamma = normal(cols, 2), dy = normal(rows * cols, 3);
  std::vector<float> y(rows * cols), inv_rms(rows), dx(rows * cols), dgamma(cols);
  rms_norm(stream, view(x, {rows, cols}), {}, view(gamma, {cols}), 0.1f, {}, view(y, {rows, cols}),
           view(inv_rms, {rows}));
  backward(view(dy, {rows, cols}), view(x, {rows, cols}), view(gamma, {cols}), view(inv_rms, {rows}),
           view(dx, {rows, cols}), view(dgamma, {cols}));
  std::vector<double> from = widen(x), scale = widen(gamma);
  auto weighted = [&] {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < cols; ++c) squares += from[r * cols + c] * from[r * cols + c];
      for (int64_t c = 0; c < cols; ++c)
        total += dy[r * cols + c] * from[r * cols + c] * scale[c] / std::sqrt(squares / cols + 0.1f);
    }
    return total;
  };
  for (int64_t i = 0; i < rows * cols; ++i) EXPECT_NEAR(dx[i], test::difference(from, i, weighted), 1e-5);
  for (int64_t c = 0; c < cols; ++c) EXPECT_NEAR(dgamma[c], test::difference(scale, c, weighted), 1e-5);
}

TEST(RmsNorm, ExtremeRows) {
  std::vector<float> x{0, 0, 1e15f, -1e15f, 1e-20f, 0}, gamma{1, 1}, y(6), inv_rms(3);
  rms_norm(stream, view(x, {3, 2}), {}, view(gamma, {2}), 1e-6f, {}, view(y, {3, 2}), view(inv_rms, {3}));
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_FLOAT_EQ(y[2], 1.0f);
  EXPECT_FLOAT_EQ(y[3], -1.0f);
  EXPECT_FLOAT_EQ(y[4], 1e-17f);
}

TEST(RmsNorm, Errors) {
  std::vector<float> x(6), gamma(3), two(2), y(6);
  std::vector<bf16> half(6);
  const Tensor good = view(x, {2, 3}), scale = view(gamma, {3}), inverse = view(two, {2}), out = view(y, {2, 3});
  const Tensor turned = view(y, {3, 2}), narrow = view(half, {2, 3});
  EXPECT_ERROR(internal, "eps", rms_norm(stream, good, {}, scale, 0.0f, {}, out, inverse));
  EXPECT_ERROR(internal, "gamma", rms_norm(stream, good, {}, inverse, eps, {}, out, inverse));
  EXPECT_ERROR(internal, "y is f32 [3, 2]", rms_norm(stream, good, {}, scale, eps, {}, turned, inverse));
  EXPECT_ERROR(internal, "y is bf16", rms_norm(stream, good, {}, scale, eps, {}, narrow, inverse));
  EXPECT_ERROR(internal, "delta", rms_norm(stream, good, turned, scale, eps, out, out, inverse));
  EXPECT_ERROR(internal, "x_out", rms_norm(stream, good, out, scale, eps, turned, out, inverse));
  EXPECT_ERROR(internal, "inv_rms", rms_norm(stream, good, {}, scale, eps, {}, out, scale));
  EXPECT_ERROR(internal, "inv_rms", rms_norm_apply(stream, good, scale, scale, out));
  EXPECT_ERROR(internal, "y is", rms_norm_apply(stream, good, scale, inverse, turned));
  EXPECT_ERROR(internal, "dy", backward(turned, good, scale, inverse, out, scale));
  EXPECT_ERROR(internal, "dx", backward(good, good, scale, inverse, narrow, scale));
  EXPECT_ERROR(internal, "dgamma", backward(good, good, scale, inverse, out, inverse));
  EXPECT_ERROR(internal, "workspace",
               rms_norm_backward(stream, good, good, scale, inverse, out, scale, view(gamma, {1, 3})));
  std::vector<int32_t> whole(6), whole3(3);
  EXPECT_ERROR(internal, "f32 or bf16",
               rms_norm_apply(stream, view(whole, {2, 3}), view(whole3, {3}), inverse, view(whole, {2, 3})));
}

}  // namespace
}  // namespace notellm

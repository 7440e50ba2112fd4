#include "kernels/swiglu.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::view;

Stream stream;

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

TEST(Swiglu, ByHand) {
  // σ(0) = 1/2, σ(log 3) = 3/4.
  const float log3 = std::log(3.0f);
  std::vector<float> gate_up{0, log3, /* up: */ 8, 4}, y(2), dy{2, 1}, d(4);
  swiglu(stream, view(gate_up, {1, 4}), view(y, {1, 2}));
  EXPECT_FLOAT_EQ(y[0], 0.0f);
  EXPECT_FLOAT_EQ(y[1], 3 * log3);
  y = {-1, -1};
  swiglu_backward(stream, view(dy, {1, 2}), view(gate_up, {1, 4}), view(d, {1, 4}), view(y, {1, 2}));
  EXPECT_FLOAT_EQ(y[0], 0.0f);
  EXPECT_FLOAT_EQ(y[1], 3 * log3);
  EXPECT_FLOAT_EQ(d[0], 2 * 8 * 0.5f);
  EXPECT_FLOAT_EQ(d[1], 4 * 0.75f * (1 + log3 * 0.25f));
  EXPECT_FLOAT_EQ(d[2], 0.0f);
  EXPECT_FLOAT_EQ(d[3], log3 * 0.75f);
}

template <class T>
class SwigluOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(SwigluOf, Types);

template <class T>
void check(int64_t rows, int64_t cols, float deviation) {
  SCOPED_TRACE(fmt::format("[{}, {}] {}", rows, cols, deviation));
  std::vector<T> gate_up = cast<T>(normal(rows * 2 * cols, 1, deviation)), dy = cast<T>(normal(rows * cols, 2)),
                 y(rows * cols);
  std::vector<T> d = gate_up, again = dy;
  swiglu(stream, view(gate_up, {rows, 2 * cols}), view(y, {rows, cols}));
  swiglu_backward(stream, view(again, {rows, cols}), view(d, {rows, 2 * cols}), view(d, {rows, 2 * cols}),
                  view(again, {rows, cols}));
  EXPECT_TRUE(test::bytes_of(again) == test::bytes_of(y)) << "swiglu_backward repeats y";
  const std::vector<double> from = test::widen(gate_up), gradient = test::widen(dy);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t at = r * 2 * cols + c;
      const double g = from[at], u = from[at + cols], s = logistic(g), dv = gradient[r * cols + c];
      test::expect_close(y[r * cols + c], g * s * u, std::fabs(g * s * u), 8);
      test::expect_close(d[at], dv * u * s * (1 + g * (1 - s)), std::fabs(dv * u * s) * (1 + std::fabs(g)), 12);
      test::expect_close(d[at + cols], dv * g * s, std::fabs(dv * g * s), 8);
    }
}

TYPED_TEST(SwigluOf, AgainstDouble) {
  for (float deviation : {1.0f, 20.0f})
    for (int64_t rows : {0, 1, 3, 150})
      for (int64_t cols : {1, 15, 64, 300}) check<TypeParam>(rows, cols, deviation);
}

TYPED_TEST(SwigluOf, SameBitsForAnyThreads) {
  const int64_t rows = 150, cols = 301;
  test::expect_same_bits([&] {
    std::vector<TypeParam> x = cast<TypeParam>(normal(rows * 2 * cols, 1)), y(rows * cols);
    swiglu(stream, view(x, {rows, 2 * cols}), view(y, {rows, cols}));
    std::vector<TypeParam> again = y;
    swiglu_backward(stream, view(again, {rows, cols}), view(x, {rows, 2 * cols}), view(x, {rows, 2 * cols}),
                    view(again, {rows, cols}));
    return test::bytes_of(x, y, again);
  });
}

TEST(Swiglu, GradientIsTheDerivative) {
  const int64_t cols = 6;
  std::vector<float> gate_up = normal(2 * cols, 3), dy = normal(cols, 4), d(2 * cols), y(cols);
  swiglu_backward(stream, view(dy, {1, cols}), view(gate_up, {1, 2 * cols}), view(d, {1, 2 * cols}),
                  view(y, {1, cols}));
  std::vector<double> x = test::widen(gate_up);
  auto weighted = [&] {
    double total = 0;
    for (int64_t c = 0; c < cols; ++c) total += dy[c] * x[c] * logistic(x[c]) * x[cols + c];
    return total;
  };
  for (int64_t i = 0; i < 2 * cols; ++i) EXPECT_NEAR(d[i], test::difference(x, i, weighted), 1e-6);
}

TEST(Swiglu, FarFromZero) {
  std::vector<float> gate_up{1e4f, -1e4f, 100, -100, /* up: */ 1, 1, 1, 1}, y(4), dy(4, 1.0f), d(8);
  swiglu(stream, view(gate_up, {1, 8}), view(y, {1, 4}));
  EXPECT_EQ(y[0], 1e4f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_EQ(y[2], 100.0f);
  EXPECT_NEAR(y[3], 0.0, 1e-36);
  swiglu_backward(stream, view(dy, {1, 4}), view(gate_up, {1, 8}), view(d, {1, 8}), view(y, {1, 4}));
  EXPECT_EQ(d[0], 1.0f);
  EXPECT_EQ(d[1], 0.0f);
  EXPECT_EQ(d[4], 1e4f);
  EXPECT_EQ(d[5], 0.0f);
}

TEST(Swiglu, Errors) {
  std::vector<float> x(12), y(6);
  std::vector<bf16> half(12);
  std::vector<int32_t> whole(12);
  const Tensor gate_up = view(x, {2, 6}), out = view(y, {2, 3});
  EXPECT_ERROR(internal, "gate_up", swiglu(stream, out, out));
  EXPECT_ERROR(internal, "gate_up is bf16", swiglu(stream, view(half, {2, 6}), out));
  EXPECT_ERROR(internal, "gate_up", swiglu_backward(stream, out, out, gate_up, out));
  EXPECT_ERROR(internal, "d_gate_up", swiglu_backward(stream, out, gate_up, out, out));
  EXPECT_ERROR(internal, "y is", swiglu_backward(stream, out, gate_up, gate_up, gate_up));
  EXPECT_ERROR(internal, "f32 or bf16", swiglu(stream, view(whole, {2, 6}), view(whole, {4, 3}).slice(0, 2)));
}

}  // namespace
}  // namespace notellm

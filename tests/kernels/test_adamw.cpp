#include <limits>

#include "kernels/adamw.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::normal;
using test::view;

Stream stream;

double squares_of(const Tensor& x) {
  std::vector<double> result{-1}, workspace(sum_of_squares_parts, -1.0);
  sum_of_squares(stream, x, view(result, {1}), view(workspace, {sum_of_squares_parts}));
  return result[0];
}

TEST(AdamW, ByHand) {
  // The first step's corrected moments are g and g²: the update is lr·(sign(g) + decay·w).
  std::vector<float> g{8, -0.5f}, w{1, 2}, m(2), v(2);
  std::vector<bf16> compute(2);
  const AdamWStep step{.learning_rate = 0.5f,
                       .beta1 = 0.75f,
                       .beta2 = 0.5f,
                       .eps = 0,
                       .weight_decay = 0.25f,
                       .gradient_scale = 0.5f,
                       .step = 1};
  adamw(stream, step, view(g, {2}), view(w, {2}), view(m, {2}), view(v, {2}), view(compute, {2}));
  EXPECT_FLOAT_EQ(m[0], 1.0f);
  EXPECT_FLOAT_EQ(v[0], 8.0f);
  EXPECT_FLOAT_EQ(w[0], 1 - 0.5f * (1 + 0.25f * 1));
  EXPECT_FLOAT_EQ(w[1], 2 - 0.5f * (-1 + 0.25f * 2));
  EXPECT_EQ(static_cast<float>(compute[0]), 0.375f);
}

TEST(AdamW, FiveStepsAgainstDouble) {
  for (int64_t n : {0, 1, 17, 16384, 40001}) {
    std::vector<float> w = normal(n, 1), m(n), v(n);
    std::vector<bf16> compute(n);
    std::vector<double> exact = test::widen(w), m_exact(n), v_exact(n), magnitude(n);
    for (int64_t i = 0; i < n; ++i) magnitude[i] = std::fabs(exact[i]);
    for (int64_t t = 1; t <= 5; ++t) {
      std::vector<float> g = normal(n, static_cast<unsigned>(10 + t));
      const AdamWStep step{.learning_rate = 2e-3f,
                           .beta1 = 0.9f,
                           .beta2 = 0.98f,
                           .eps = 1e-8f,
                           .weight_decay = 0.01f,
                           .gradient_scale = 0.3f,
                           .step = t};
      adamw(stream, step, view(g, {n}), view(w, {n}), view(m, {n}), view(v, {n}), view(compute, {n}));
      const double bias1 = 1 - std::pow(static_cast<double>(step.beta1), t),
                   bias2 = 1 - std::pow(static_cast<double>(step.beta2), t);
      for (int64_t i = 0; i < n; ++i) {
        const double scaled = static_cast<double>(g[i]) * step.gradient_scale;
        m_exact[i] = step.beta1 * m_exact[i] + (1 - static_cast<double>(step.beta1)) * scaled;
        v_exact[i] = step.beta2 * v_exact[i] + (1 - static_cast<double>(step.beta2)) * scaled * scaled;
        const double direction = (m_exact[i] / bias1) / (std::sqrt(v_exact[i] / bias2) + step.eps);
        exact[i] -= step.learning_rate * (direction + step.weight_decay * exact[i]);
        magnitude[i] +=
            2 * std::fabs(exact[i]) + 20 * step.learning_rate;  // each step: two roundings of w, some of the update
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      test::expect_close(w[i], exact[i], magnitude[i], 1);
      ASSERT_EQ(compute[i].bits, bf16(w[i]).bits);
    }
  }
}

TEST(AdamW, WithoutAComputeCopy) {
  std::vector<float> g{1}, w{1}, m(1), v(1);
  adamw(stream,
        {.learning_rate = 0.1f,
         .beta1 = 0.9f,
         .beta2 = 0.9f,
         .eps = 1e-8f,
         .weight_decay = 0,
         .gradient_scale = 1,
         .step = 1},
        view(g, {1}), view(w, {1}), view(m, {1}), view(v, {1}), {});
  EXPECT_FLOAT_EQ(w[0], 0.9f);
}

TEST(AdamW, SameBitsForAnyThreads) {
  const int64_t n = 100003;
  std::vector<float> g = normal(n, 2);
  test::expect_same_bits([&] {
    std::vector<float> w = normal(n, 1), m = normal(n, 3), v(n, 0.5f);
    std::vector<bf16> compute(n);
    adamw(stream,
          {.learning_rate = 0.1f,
           .beta1 = 0.9f,
           .beta2 = 0.98f,
           .eps = 1e-8f,
           .weight_decay = 0.1f,
           .gradient_scale = 1,
           .step = 7},
          view(g, {n}), view(w, {n}), view(m, {n}), view(v, {n}), view(compute, {n}));
    const std::vector<double> sum{squares_of(view(w, {n}))};
    return test::bytes_of(w, m, v) + test::bytes_of(compute) + test::bytes_of(sum);
  });
}

TEST(SumOfSquares, AgainstDouble) {
  for (int64_t n : {0, 1, 63, 64, 65, 1000, 50001}) {
    std::vector<float> x = normal(n, 1);
    double exact = 0;
    for (float value : x) exact += static_cast<double>(value) * value;
    EXPECT_NEAR(squares_of(view(x, {n})), exact, 1e-12 * exact) << n;
  }
  std::vector<float> big{1e30f, 1e30f};
  EXPECT_NEAR(squares_of(view(big, {2})), 2e60, 1e54) << "beyond the range of f32";
}

TEST(SumOfSquares, CarriesNanAndInfinity) {
  for (size_t at : {size_t{0}, size_t{777}, size_t{49999}}) {
    std::vector<float> x(50000, 1.0f);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(std::isinf(squares_of(view(x, {50000}))));
    x[at] = std::nanf("");
    EXPECT_TRUE(std::isnan(squares_of(view(x, {50000}))));
  }
}

TEST(AdamW, Errors) {
  std::vector<float> x(4), other(3);
  std::vector<bf16> half(4), short_half(3);
  const Tensor good = view(x, {4}), bad = view(other, {3}), narrow = view(half, {4});
  AdamWStep step{
      .learning_rate = 1, .beta1 = 0.9f, .beta2 = 0.9f, .eps = 1, .weight_decay = 0, .gradient_scale = 1, .step = 1};
  EXPECT_ERROR(internal, "gradient", adamw(stream, step, bad, good, good, good, narrow));
  EXPECT_ERROR(internal, "weights", adamw(stream, step, good, narrow, good, good, narrow));
  EXPECT_ERROR(internal, "m is", adamw(stream, step, good, good, bad, good, narrow));
  EXPECT_ERROR(internal, "v is", adamw(stream, step, good, good, good, narrow, narrow));
  EXPECT_ERROR(internal, "compute", adamw(stream, step, good, good, good, good, good));
  EXPECT_ERROR(internal, "compute", adamw(stream, step, good, good, good, good, view(short_half, {3})));
  step.step = 0;
  EXPECT_ERROR(internal, "step is 0", adamw(stream, step, good, good, good, good, narrow));
  std::vector<double> sum(1), parts(sum_of_squares_parts);
  const Tensor result = view(sum, {1}), workspace = view(parts, {sum_of_squares_parts});
  EXPECT_ERROR(internal, "x is bf16", sum_of_squares(stream, narrow, result, workspace));
  EXPECT_ERROR(internal, "result", sum_of_squares(stream, good, good, workspace));
  EXPECT_ERROR(internal, "workspace", sum_of_squares(stream, good, result, result));
}

}  // namespace
}  // namespace notellm

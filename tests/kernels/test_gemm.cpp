#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/gemm_few_rows.h"
#include "kernels/gemm_panels.h"
#include "runtime/memory.h"
#include "tests/kernels/op_support.h"

namespace notellm {
namespace {

Tensor view(std::vector<float>& v, int64_t rows, int64_t cols) { return Tensor::of(v.data(), {rows, cols}); }

TEST(Gemm, HandChecked) {
  Stream stream;
  std::vector<float> a = {1, 2, 3, 4, 5, 6}, b = {1, 0, -1, 2, 1, 1}, c = {100, 100, 100, 100};
  gemm(stream, view(a, 2, 3), Transpose::no, view(b, 3, 2), Transpose::no, view(c, 2, 2));
  EXPECT_EQ(c, (std::vector<float>{2, 7, 5, 16}));
  gemm(stream, view(a, 2, 3), Transpose::no, view(b, 2, 3), Transpose::yes, view(c, 2, 2), true);
  EXPECT_EQ(c, (std::vector<float>{2 - 2, 7 + 7, 5 - 2, 16 + 19}));
}

struct Case {
  int64_t m, k, n;
};

// Error bound of a sum of k products in f32: |error| ≤ (k + 1)·2⁻²⁴·Σ|a||b|, whatever the order.
void compare(const Case& s, Transpose ta, Transpose tb, DType in, DType out, bool accumulate) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> a(s.m * s.k), b(s.k * s.n), c(s.m * s.n);
  for (auto* v : {&a, &b, &c})
    for (float& x : *v) x = static_cast<float>(bf16(normal(random)));
  std::vector<bf16> a16(a.size()), b16(b.size()), c16(c.size());
  auto narrow = [](auto& from, auto& to) {
    for (size_t i = 0; i < from.size(); ++i) to[i] = bf16(from[i]);
  };
  narrow(a, a16), narrow(b, b16), narrow(c, c16);
  const bool is_ta = ta == Transpose::yes, is_tb = tb == Transpose::yes;
  const auto tensor = [&](auto& wide, auto& slim, DType t, int64_t r, int64_t q) {
    return t == DType::f32 ? Tensor::of(wide.data(), {r, q}) : Tensor::of(slim.data(), {r, q});
  };
  const std::vector<float> before = c;
  Stream stream;
  gemm(stream, tensor(a, a16, in, is_ta ? s.k : s.m, is_ta ? s.m : s.k), ta,
       tensor(b, b16, in, is_tb ? s.n : s.k, is_tb ? s.k : s.n), tb, tensor(c, c16, out, s.m, s.n), accumulate);
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = accumulate ? before[i * s.n + j] : 0, magnitude = std::abs(sum);
      for (int64_t x = 0; x < s.k; ++x) {
        const double product = double(a[is_ta ? x * s.m + i : i * s.k + x]) * b[is_tb ? j * s.k + x : x * s.n + j];
        sum += product, magnitude += std::abs(product);
      }
      const double got = out == DType::f32 ? c[i * s.n + j] : static_cast<float>(c16[i * s.n + j]);
      // bf16 output: one rounding of the product sum, and one more when it was added to a rounded c: 2⁻⁸ in all
      const double bound = (s.k + 1) * 0x1p-24 * magnitude + (out == DType::bf16 ? 0x1p-8 * std::abs(sum) : 0);
      ASSERT_LE(std::abs(got - sum), bound + 1e-30) << i << "," << j << " of " << s.m << "x" << s.k << "x" << s.n;
    }
}

TEST(Gemm, AgainstPlainLoops) {
  for (Case s :
       {Case{1, 1, 1}, {3, 5, 7}, {1, 70, 37}, {2, 64, 16}, {7, 33, 20}, {64, 32, 48}, {65, 33, 17}, {130, 192, 70}})
    for (Transpose ta : {Transpose::no, Transpose::yes})
      for (Transpose tb : {Transpose::no, Transpose::yes})
        for (bool accumulate : {false, true}) {
          compare(s, ta, tb, DType::f32, DType::f32, accumulate);
          compare(s, ta, tb, DType::bf16, DType::f32, accumulate);
          compare(s, ta, tb, DType::bf16, DType::bf16, accumulate);
        }
}

// What a note's next token is must not depend on which notes are computed beside it. multiply(a, b, c): c = a bᵀ
template <class T, class Multiply>
void expect_rows_alone(int64_t k, int64_t n, int64_t rows, Multiply multiply) {
  const std::vector<T> a = test::cast<T>(test::normal(rows * k, 1)), b = test::cast<T>(test::normal(n * k, 2));
  const auto product = [&](int64_t first, int64_t m) {
    std::vector<float> c(static_cast<size_t>(m * n), 1.0f);
    multiply(Tensor::of(a.data() + first * k, {m, k}), Tensor::of(b.data(), {n, k}), Tensor::of(c.data(), {m, n}));
    return c;
  };
  const std::vector<float> all = product(0, rows);
  for (int64_t m : {1, 2, 3, 5, 6, 7, 31})
    for (int64_t first = 0; first + m <= rows; first += 9)
      EXPECT_TRUE(std::ranges::equal(product(first, m), std::span(all).subspan(first * n, m * n))) << m << " rows";
  test::expect_same_bits([&] { return test::bytes_of(product(0, rows)); });
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t x = 0; x < k; ++x) {
        const double term = double(float(a[i * k + x])) * double(float(b[j * k + x]));
        sum += term, magnitude += std::abs(term);
      }
      ASSERT_NEAR(all[i * n + j], sum, (k + 1) * 0x1p-24 * magnitude + 1e-30) << i << ", " << j;
    }
}

TEST(Gemm, FewRowsDoNotDependOnEachOther) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{1, 1}, {31, 15}, {64, 48}, {100, 37}, {300, 200}}) {
    SCOPED_TRACE(fmt::format("k {}, n {}", k, n));
    const auto widened = [](Tensor a, Tensor b, Tensor c) { gemm_few_rows(a, b, c, false, false); };
    const auto dotted = [](Tensor a, Tensor b, Tensor c) { gemm_few_rows(a, b, c, false, true); };
    expect_rows_alone<float>(k, n, few_rows, widened);
    expect_rows_alone<bf16>(k, n, few_rows_bf16, widened);
    expect_rows_alone<bf16>(k, n, few_rows_bf16, dotted);
  }
}

TEST(Gemm, PanelsDoNotDependOnEachOther) {
  for (const auto& [k, n] :
       {std::pair<int64_t, int64_t>{1, 32}, {31, 64}, {64, 96}, {100, 1120}, {128, 64}, {129, 64}, {300, 224}}) {
    SCOPED_TRACE(fmt::format("k {}, n {}", k, n));
    expect_rows_alone<bf16>(k, n, 290, [](Tensor a, Tensor b, Tensor c) {
      Stream stream;
      Buffer memory(panel_bytes(b));
      gemm(stream, a, Transpose::no, to_panels(b, memory.data()), Transpose::yes, c);
    });
  }
}

// A thread's memory for incomplete blocks has seen other products, of NaN too, which 0 · NaN would bring back.
TEST(Gemm, PanelsKeepNothingOfOtherProducts) {
  Stream stream;
  const int64_t m = 7, n = 32;
  const auto product = [&](int64_t k, const std::vector<bf16>& a) {
    const std::vector<bf16> b(n * k, bf16(1.0f));
    const Tensor right = Tensor::of(b.data(), {n, k});
    Buffer memory(panel_bytes(right));
    std::vector<float> c(m * n);
    gemm(stream, Tensor::of(a.data(), {m, k}), Transpose::no, to_panels(right, memory.data()), Transpose::yes,
         view(c, m, n));
    return c;
  };
  product(128, std::vector<bf16>(m * 128, bf16(std::numeric_limits<float>::quiet_NaN())));
  for (const int64_t k : {1, 31, 33, 100})
    EXPECT_EQ(product(k, std::vector<bf16>(m * k, bf16(2.0f))), std::vector<float>(m * n, 2.0f * k)) << k;
}

TEST(Gemm, PanelsAddAndRound) {
  Stream stream;
  const int64_t m = 265, k = 300, n = 64;  // more than one group and piece, and an incomplete block
  const std::vector<bf16> a = test::cast<bf16>(test::normal(m * k, 1)), b = test::cast<bf16>(test::normal(n * k, 2));
  const Tensor left = Tensor::of(a.data(), {m, k}), right = Tensor::of(b.data(), {n, k});
  Buffer memory(panel_bytes(right));
  const Tensor panels = to_panels(right, memory.data());
  std::vector<float> sum(m * n, 0.5f), product(m * n);
  std::vector<bf16> rounded(m * n, bf16(0.5f));
  gemm(stream, left, Transpose::no, panels, Transpose::yes, view(product, m, n));
  gemm(stream, left, Transpose::no, panels, Transpose::yes, view(sum, m, n), true);
  gemm(stream, left, Transpose::no, panels, Transpose::yes, Tensor::of(rounded.data(), {m, n}), true);
  for (int64_t i = 0; i < m * n; ++i) {
    ASSERT_EQ(sum[i], product[i] + 0.5f);
    ASSERT_EQ(rounded[i].bits, bf16(sum[i]).bits);
  }
  EXPECT_THROW(gemm(stream, left, Transpose::no, panels, Transpose::no, view(product, m, n)), Error);
  EXPECT_THROW(gemm(stream, panels, Transpose::no, panels, Transpose::yes, view(product, m, n)), Error);
  EXPECT_THROW(to_panels(Tensor::of(b.data(), {n - 1, k}), memory.data()), Error);
  EXPECT_THROW(to_panels(view(product, n, m), memory.data()), Error);
}

// swiglu of what gemm finds for gate and up, to the bit the same sums: vexp is wrong by at most 2 units in the last
// place of f32, four more operations by a half each, and the result is rounded to bf16.
TEST(Gemm, SwigluOfGatedPanels) {
  Stream stream;
  const int64_t m = 109, k = 300, n = 48;
  const std::vector<bf16> a = test::cast<bf16>(test::normal(m * k, 1)),
                          b = test::cast<bf16>(test::normal(2 * n * k, 2, 0.1f));
  const Tensor left = Tensor::of(a.data(), {m, k}), right = Tensor::of(b.data(), {2 * n, k});
  Buffer memory(panel_bytes(right)), gated_memory(panel_bytes(right));
  const Tensor panels = to_panels(right, memory.data()), gated = to_gated_panels(right, gated_memory.data());
  std::vector<float> gate_up(m * 2 * n);
  std::vector<bf16> y(m * n), alone(n);
  gemm(stream, left, Transpose::no, panels, Transpose::yes, view(gate_up, m, 2 * n));
  gemm_swiglu(left, gated, Tensor::of(y.data(), {m, n}));
  for (int64_t i = 0; i < m; ++i) {
    gemm_swiglu(left.slice(i, i + 1), gated, Tensor::of(alone.data(), {1, n}));
    for (int64_t j = 0; j < n; ++j) {
      const double g = gate_up[i * 2 * n + j], u = gate_up[i * 2 * n + n + j], expected = g / (1 + std::exp(-g)) * u;
      ASSERT_NEAR(static_cast<float>(y[i * n + j]), expected, std::abs(expected) * (0x1p-8 + 4 * 0x1p-23))
          << i << ", " << j;
      ASSERT_EQ(alone[j].bits, y[i * n + j].bits);
    }
  }
  const Tensor to = Tensor::of(y.data(), {m, n});
  EXPECT_THROW(gemm_swiglu(left, panels, to), Error);
  EXPECT_THROW(gemm_swiglu(left, gated, Tensor::of(y.data(), {n, m})), Error);
  EXPECT_THROW(gemm_swiglu(view(gate_up, m, k), gated, to), Error);
  EXPECT_THROW(gemm(stream, left, Transpose::no, gated, Transpose::yes, view(gate_up, m, 2 * n)), Error);
  EXPECT_THROW(to_gated_panels(Tensor::of(b.data(), {2 * n - 2, k}), memory.data()), Error);
}

TEST(Gemm, EmptySizes) {
  Stream stream;
  std::vector<float> a = {1}, b = {2}, c = {3};
  gemm(stream, view(a, 0, 1), Transpose::no, view(b, 1, 1), Transpose::no, view(c, 0, 1));
  gemm(stream, view(a, 1, 0), Transpose::no, view(b, 0, 1), Transpose::no, view(c, 1, 1), true);
  EXPECT_EQ(c[0], 3);
  gemm(stream, view(a, 1, 0), Transpose::no, view(b, 0, 1), Transpose::no, view(c, 1, 1));
  EXPECT_EQ(c[0], 0);
}

TEST(Gemm, Errors) {
  Stream stream;
  std::vector<float> x(16);
  std::vector<bf16> y(16);
  EXPECT_THROW(gemm(stream, view(x, 2, 3), Transpose::no, view(x, 2, 3), Transpose::no, view(x, 2, 3)), Error);
  EXPECT_THROW(gemm(stream, view(x, 2, 3), Transpose::no, view(x, 3, 2), Transpose::no, view(x, 3, 2)), Error);
  EXPECT_THROW(gemm(stream, view(x, 2, 2), Transpose::no, Tensor::of(y.data(), {2, 2}), Transpose::no, view(x, 2, 2)),
               Error);
  EXPECT_THROW(gemm(stream, view(x, 2, 2), Transpose::no, view(x, 2, 2), Transpose::no, Tensor::of(y.data(), {2, 2})),
               Error);
}

}  // namespace
}  // namespace notellm

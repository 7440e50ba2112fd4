#include <gtest/gtest.h>

#include <cmath>

#include "kernels/gemm.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::OnGpu;

constexpr Transpose no = Transpose::no, yes = Transpose::yes;

// c (+)= op(a)·op(b) on the GPU against double. Error bound of a sum of k products in f32, whatever the order:
// (k + 1)·2⁻²⁴·Σ|a||b|; a bf16 result is rounded once, to 2⁻⁹ of it: 2⁻⁸ is asked for, as of a plain implementation
// twice.
template <class In, class Out>
void check(int64_t m, int64_t k, int64_t n, Transpose ta, Transpose tb, bool accumulate) {
  SCOPED_TRACE(fmt::format("[{}, {}] [{}, {}] {} {} {}", m, k, k, n, ta == yes, tb == yes, accumulate));
  Stream stream(Device::cuda);
  const std::vector<In> a = cast<In>(normal(m * k, 1)), b = cast<In>(normal(k * n, 2));
  const std::vector<Out> before = cast<Out>(normal(m * n, 3));
  OnGpu<In> device_a(stream, a), device_b(stream, b);
  OnGpu<Out> device_c(stream, before);
  const auto shape = [](bool transposed, int64_t rows, int64_t cols) {
    return std::pair(transposed ? cols : rows, transposed ? rows : cols);
  };
  const auto [ar, ac] = shape(ta == yes, m, k);
  const auto [br, bc] = shape(tb == yes, k, n);
  gemm(stream, device_a.tensor({ar, ac}), ta, device_b.tensor({br, bc}), tb, device_c.tensor({m, n}), accumulate);
  const std::vector<Out> c = device_c.download();
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? double(static_cast<float>(before[i * n + j])) : 0, magnitude = std::fabs(sum);
      for (int64_t x = 0; x < k; ++x) {
        const double product = double(static_cast<float>(a[ta == yes ? x * m + i : i * k + x])) *
                               double(static_cast<float>(b[tb == yes ? j * k + x : x * n + j]));
        sum += product;
        magnitude += std::fabs(product);
      }
      const double bound = (k + 2) * test::f32_roundoff * magnitude +
                           (std::is_same_v<Out, bf16> ? test::bf16_roundoff * std::fabs(sum) : 0.0);
      ASSERT_NEAR(static_cast<double>(static_cast<float>(c[i * n + j])), sum, bound + 1e-30) << i << ", " << j;
    }
}

TEST(GemmOnGpu, AgainstDouble) {
  for (const auto& [m, k, n] : {std::array<int64_t, 3>{1, 1, 1}, {3, 5, 7}, {16, 8, 24}, {65, 33, 17}, {70, 130, 40}})
    for (Transpose ta : {no, yes})
      for (Transpose tb : {no, yes})
        for (bool accumulate : {false, true}) {
          check<float, float>(m, k, n, ta, tb, accumulate);
          check<bf16, bf16>(m, k, n, ta, tb, accumulate);
          check<bf16, float>(m, k, n, ta, tb, accumulate);
        }
}

TEST(GemmOnGpu, Empty) {
  Stream stream(Device::cuda);
  OnGpu<float> a(stream, normal(6, 1)), c(stream, std::vector<float>{1, 2, 3, 4});
  gemm(stream, a.tensor({0, 3}), no, a.tensor({3, 2}), no, c.tensor({0, 2}));
  gemm(stream, a.tensor({2, 0}), no, a.tensor({0, 2}), no, c.tensor({2, 2}), true);
  EXPECT_EQ(c.download(), (std::vector<float>{1, 2, 3, 4}));
  gemm(stream, a.tensor({2, 0}), no, a.tensor({0, 2}), no, c.tensor({2, 2}));
  EXPECT_EQ(c.download(), (std::vector<float>(4)));
}

// Rows of a slice begin anywhere: the algorithm is chosen for the alignment that there is.
TEST(GemmOnGpu, SlicesThatAreNotAligned) {
  Stream stream(Device::cuda);
  const std::vector<bf16> a = cast<bf16>(normal(7 * 3, 1)), b = cast<bf16>(normal(3 * 5, 2));
  OnGpu<bf16> device_a(stream, a), device_b(stream, b);
  OnGpu<float> c(stream, std::vector<float>(6 * 5));
  gemm(stream, device_a.tensor({7, 3}).slice(1, 7), no, device_b.tensor({3, 5}), no, c.tensor({6, 5}));
  const std::vector<float> got = c.download();
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 5; ++j) {
      double sum = 0, magnitude = 0;
      for (int x = 0; x < 3; ++x) {
        const double product = double(float(a[(i + 1) * 3 + x])) * double(float(b[x * 5 + j]));
        sum += product, magnitude += std::fabs(product);
      }
      EXPECT_NEAR(got[i * 5 + j], sum, 5 * test::f32_roundoff * magnitude);
    }
}

}  // namespace
}  // namespace notellm

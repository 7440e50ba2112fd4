// AdamW, the sum of squares, and conversion on CUDA: against the CPU op or double, from aligned and other addresses.
#include <limits>

#include "kernels/adamw.h"
#include "kernels/convert.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::normal;
using test::OnGpu;
using test::view;

// The CPU op rounds in the same places but for its fused multiply-adds: a few roundings of what is added.
TEST(CudaAdamW, AgainstTheCpu) {
  Stream cpu, stream(Device::cuda);
  for (int64_t n : {0, 1, 3, 17, 1024, 4001})
    // Where the f32 arrays begin, and the copy: not aligned for packs, all of them or the copy alone.
    for (const auto& [skip, compute_skip] : {std::pair<int64_t, int64_t>{0, 0}, {1, 1}, {2, 4}, {0, 1}}) {
      if (skip > n) continue;
      std::vector<float> w = normal(n, 1), m = normal(n, 3, 0.1f), v(n, 0.5f);
      std::vector<bf16> compute(n + 4, bf16(7.0f));
      const std::vector<float> g = normal(n, 2), before = w;
      const OnGpu<float> g_gpu(stream, g), w_gpu(stream, w), m_gpu(stream, m), v_gpu(stream, v);
      const OnGpu<bf16> compute_gpu(stream, compute);
      const auto part = [&, skip = skip](const Tensor& t) { return t.slice(skip, n); };
      const auto compute_part = [&, skip = skip, from = compute_skip](const Tensor& t) {
        return t.slice(from, from + n - skip);
      };
      for (int64_t t = 1; t <= 3; ++t) {
        const AdamWStep step{.learning_rate = 2e-3f,
                             .beta1 = 0.9f,
                             .beta2 = 0.98f,
                             .eps = 1e-8f,
                             .weight_decay = 0.01f,
                             .gradient_scale = 0.3f,
                             .step = t};
        std::vector<float> gradient = g;
        adamw(cpu, step, part(view(gradient, {n})), part(view(w, {n})), part(view(m, {n})), part(view(v, {n})),
              compute_part(view(compute, {n + 4})));
        adamw(stream, step, part(g_gpu.tensor({n})), part(w_gpu.tensor({n})), part(m_gpu.tensor({n})),
              part(v_gpu.tensor({n})), compute_part(compute_gpu.tensor({n + 4})));
      }
      const std::vector<float> w_result = w_gpu.download(), m_result = m_gpu.download(), v_result = v_gpu.download();
      const std::vector<bf16> rounded = compute_gpu.download();
      for (int64_t i = 0; i < n; ++i) {
        const double step_magnitude = 2e-3 * 10;
        test::expect_close(w_result[i], w[i], std::fabs(before[i]) + step_magnitude, 24);
        test::expect_close(m_result[i], m[i], std::fabs(m[i]) + std::fabs(g[i]), 12);
        test::expect_close(v_result[i], v[i], std::fabs(v[i]) + g[i] * g[i], 12);
      }
      for (int64_t i = 0; i < n + 4; ++i) {
        const int64_t of = i - compute_skip + skip;  // the weight that place i has a copy of
        ASSERT_EQ(rounded[i].bits, of < skip || of >= n ? bf16(7.0f).bits : bf16(w_result[of]).bits) << i;
      }
    }
}

TEST(CudaAdamW, WithoutAComputeCopy) {
  Stream stream(Device::cuda);
  const OnGpu<float> g(stream, {1}), w(stream, {1}), m(stream, {0}), v(stream, {0});
  adamw(stream,
        {.learning_rate = 0.1f,
         .beta1 = 0.9f,
         .beta2 = 0.9f,
         .eps = 1e-8f,
         .weight_decay = 0,
         .gradient_scale = 1,
         .step = 1},
        g.tensor({1}), w.tensor({1}), m.tensor({1}), v.tensor({1}), {});
  EXPECT_FLOAT_EQ(w.download()[0], 0.9f);
}

TEST(CudaAdamW, EpsIsAddedToTheRoot) {
  // m/√v is ±1 in the first step; with eps as large as the gradient half of that is left.
  Stream stream(Device::cuda);
  const OnGpu<float> g(stream, {1e-8f}), w(stream, {1}), m(stream, {0}), v(stream, {0});
  adamw(stream,
        {.learning_rate = 0.1f,
         .beta1 = 0.9f,
         .beta2 = 0.9f,
         .eps = 1e-8f,
         .weight_decay = 0,
         .gradient_scale = 1,
         .step = 1},
        g.tensor({1}), w.tensor({1}), m.tensor({1}), v.tensor({1}), {});
  EXPECT_FLOAT_EQ(w.download()[0], 0.95f);
}

double squares_of(Stream& stream, const std::vector<float>& x, int64_t skip = 0) {
  const OnGpu<float> x_gpu(stream, x);
  const OnGpu<double> result(stream, {-1});
  const Buffer workspace(sum_of_squares_parts * 8, Memory::device);
  sum_of_squares(stream, x_gpu.tensor({std::ssize(x)}).slice(skip, std::ssize(x)), result.tensor({1}),
                 workspace.tensor(DType::f64, {sum_of_squares_parts}));
  return result.download()[0];
}

TEST(CudaSumOfSquares, AgainstDouble) {
  Stream stream(Device::cuda);
  for (int64_t n : {0, 1, 3, 64, 1025, 50001})
    for (int64_t skip : {0, 1, 2}) {  // not aligned for packs
      if (skip > n) continue;
      const std::vector<float> x = normal(n, 1);
      double exact = 0;
      for (int64_t i = skip; i < n; ++i) exact += static_cast<double>(x[i]) * x[i];
      const double sum = squares_of(stream, x, skip);
      EXPECT_NEAR(sum, exact, 1e-12 * exact) << n;
      EXPECT_EQ(sum, squares_of(stream, x, skip)) << "the same bits again";
    }
  EXPECT_NEAR(squares_of(stream, {1e30f, 1e30f}), 2e60, 1e54) << "beyond the range of f32";
}

TEST(CudaSumOfSquares, CarriesNanAndInfinity) {
  Stream stream(Device::cuda);
  for (size_t at : {size_t{0}, size_t{777}, size_t{4999}}) {
    std::vector<float> x(5000, 1.0f);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(std::isinf(squares_of(stream, x)));
    x[at] = std::nanf("");
    EXPECT_TRUE(std::isnan(squares_of(stream, x)));
  }
}

// The elements from `skip_from` on, to `skip_to` and the places behind it.
template <class From, class To>
void check_convert(const std::vector<float>& values, int64_t skip_from, int64_t skip_to) {
  SCOPED_TRACE(fmt::format("{} elements, from {} to {}", values.size(), skip_from, skip_to));
  Stream stream(Device::cuda);
  const std::vector<From> x = test::cast<From>(values);
  const auto n = std::ssize(x), count = n - std::max(skip_from, skip_to);
  if (count < 0) return;
  const OnGpu<From> x_gpu(stream, x);
  const OnGpu<To> y_gpu(stream, std::vector<To>(n, To(7.0f)));
  convert(stream, x_gpu.tensor({n}).slice(skip_from, skip_from + count),
          y_gpu.tensor({n}).slice(skip_to, skip_to + count));
  const std::vector<To> y = y_gpu.download();
  for (int64_t i = 0; i < n; ++i) {
    const bool written = skip_to <= i && i < skip_to + count;
    const To value = written ? To(static_cast<float>(x[i - skip_to + skip_from])) : To(7.0f);
    const auto expected = static_cast<float>(value), actual = static_cast<float>(y[i]);
    ASSERT_TRUE(actual == expected || (std::isnan(actual) && std::isnan(expected))) << i << ": " << actual;
  }
}

TEST(CudaConvert, BothWays) {
  for (int64_t n : {0, 1, 3, 64, 1027}) {
    std::vector<float> x = normal(n, 1, 1e4f);
    const float special[] = {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, -0.0f, INFINITY, -INFINITY, 3.4e38f, std::nanf("")};
    for (size_t i = 0; i < std::min(x.size(), std::size(special)); ++i) x[i] = special[i];
    for (int64_t from : {0, 1, 2})
      for (int64_t to : {0, 1, 2}) {
        check_convert<float, bf16>(x, from, to);
        check_convert<bf16, float>(x, from, to);
        check_convert<float, float>(x, from, to);
        check_convert<bf16, bf16>(x, from, to);
      }
  }
}

}  // namespace
}  // namespace notellm

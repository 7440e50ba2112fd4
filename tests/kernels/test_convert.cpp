#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/convert.h"

namespace notellm {
namespace {

TEST(Convert, RoundsToNearestEvenAndBack) {
  // bf16 has 8 significant bits: above 1 its step is 2⁻⁷; a tie goes to the even neighbour.
  std::vector<float> x = {0, -0.0f, 1, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, -2.5f, INFINITY, -INFINITY, 3.4e38f};
  const std::vector<float> expected = {0, -0.0f, 1, 1, 1 + 0x1p-6f, -2.5f, INFINITY, -INFINITY, INFINITY};
  const auto n = static_cast<int64_t>(x.size());
  std::vector<bf16> narrow(x.size());
  std::vector<float> back(x.size());
  Stream stream;
  convert(stream, Tensor::of(x.data(), {n}), Tensor::of(narrow.data(), {n}));
  convert(stream, Tensor::of(narrow.data(), {n}), Tensor::of(back.data(), {n}));
  EXPECT_EQ(back, expected);
  x[0] = std::numeric_limits<float>::quiet_NaN();
  convert(stream, Tensor::of(x.data(), {1}), Tensor::of(narrow.data(), {1}));
  EXPECT_TRUE(std::isnan(static_cast<float>(narrow[0])));
}

TEST(Convert, ManyElements) {
  std::vector<float> x(100'003);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  std::vector<bf16> y(x.size());
  Stream stream;
  const auto n = static_cast<int64_t>(x.size());
  convert(stream, Tensor::of(x.data(), {n}), Tensor::of(y.data(), {n}));
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i].bits, bf16(x[i]).bits);
}

TEST(Convert, Errors) {
  std::vector<float> x(4);
  std::vector<int32_t> y(4);
  Stream stream;
  EXPECT_THROW(convert(stream, Tensor::of(x.data(), {4}), Tensor::of(x.data(), {3})), Error);
  EXPECT_THROW(convert(stream, Tensor::of(x.data(), {4}), Tensor::of(y.data(), {4})), Error);
}

}  // namespace
}  // namespace notellm

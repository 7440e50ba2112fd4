#include "kernels/rope.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::view;

Stream stream;

TEST(Rope, ByHand) {
  // theta = 4: the frequencies of head_dim 4 are 1 and 4^(−1/2) = 1/2; element 0 pairs with 2, element 1 with 3.
  std::vector<float> table(3 * 4);
  rope_table(rope_frequencies(4.0f, 4), view(table, {3, 2, 2}));
  EXPECT_EQ(table[0], 1.0f);
  EXPECT_EQ(table[2], 0.0f);
  EXPECT_FLOAT_EQ(table[8], std::cos(2.0f));
  EXPECT_FLOAT_EQ(table[9], std::cos(1.0f));
  EXPECT_FLOAT_EQ(table[10], std::sin(2.0f));
  EXPECT_FLOAT_EQ(table[11], std::sin(1.0f));
  std::vector<float> x{1, 0, 0, 3, /* beyond the heads: */ 7};
  std::vector<int32_t> positions{2};
  rope(stream, view(x, {1, 5}), view(positions, {1}), view(table, {3, 2, 2}), 1, 4, 1);
  EXPECT_FLOAT_EQ(x[0], std::cos(2.0f));
  EXPECT_FLOAT_EQ(x[1], -3 * std::sin(1.0f));
  EXPECT_FLOAT_EQ(x[2], std::sin(2.0f));
  EXPECT_FLOAT_EQ(x[3], 3 * std::cos(1.0f));
  EXPECT_EQ(x[4], 7.0f);
}

template <class T>
class RopeOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(RopeOf, Types);

template <class T>
void check(int64_t rows, int64_t heads, int64_t head_dim, int64_t beyond, int direction) {
  SCOPED_TRACE(fmt::format("{} rows, {} heads of {}, {} beyond, {}", rows, heads, head_dim, beyond, direction));
  const int64_t known = 50, half = head_dim / 2, cols = heads * head_dim + beyond;
  std::vector<T> x = cast<T>(normal(rows * cols, 1)), before = x;
  std::vector<int32_t> positions = test::integers(rows, known, 2);
  std::vector<float> table(known * head_dim);
  rope_table(rope_frequencies(10000.0f, head_dim), view(table, {known, 2, half}));
  rope(stream, view(x, {rows, cols}), view(positions, {rows}), view(table, {known, 2, half}), heads, head_dim,
       direction);
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

TYPED_TEST(RopeOf, AgainstDouble) {
  for (int direction : {1, -1})
    for (int64_t head_dim : {2, 6, 32, 64}) {
      check<TypeParam>(0, 2, head_dim, 0, direction);
      check<TypeParam>(1, 1, head_dim, 0, direction);
      check<TypeParam>(3, 0, head_dim, 5, direction);
      check<TypeParam>(200, 3, head_dim, 2 * head_dim, direction);
    }
}

TYPED_TEST(RopeOf, SameBitsForAnyThreads) {
  const int64_t rows = 700, heads = 3, head_dim = 32, cols = heads * head_dim;
  std::vector<int32_t> positions = test::integers(rows, 100, 2);
  std::vector<float> table(100 * head_dim);
  rope_table(rope_frequencies(500.0f, head_dim), view(table, {100, 2, head_dim / 2}));
  test::expect_same_bits([&] {
    std::vector<TypeParam> x = cast<TypeParam>(normal(rows * cols, 1));
    rope(stream, view(x, {rows, cols}), view(positions, {rows}), view(table, {100, 2, head_dim / 2}), heads, head_dim,
         1);
    return test::bytes_of(x);
  });
}

TEST(Rope, BackwardIsTheTranspose) {
  // <rope(x), y> = <x, rope⁻¹(y)>: the defining property of the gradient of a linear map.
  const int64_t rows = 4, head_dim = 8;
  std::vector<float> x = normal(rows * head_dim, 1), y = normal(rows * head_dim, 2), turned = x, back = y,
                     table(90 * head_dim);
  std::vector<int32_t> positions{0, 1, 17, 89};
  rope_table(rope_frequencies(100.0f, head_dim), view(table, {90, 2, head_dim / 2}));
  rope(stream, view(turned, {rows, head_dim}), view(positions, {rows}), view(table, {90, 2, 4}), 1, head_dim, 1);
  rope(stream, view(back, {rows, head_dim}), view(positions, {rows}), view(table, {90, 2, 4}), 1, head_dim, -1);
  double forward = 0, backward = 0, magnitude = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    forward += static_cast<double>(turned[i]) * y[i];
    backward += static_cast<double>(x[i]) * back[i];
    magnitude += std::fabs(static_cast<double>(x[i]) * y[i]) + std::fabs(static_cast<double>(turned[i]) * y[i]);
  }
  EXPECT_NEAR(forward, backward, 8 * test::f32_roundoff * magnitude);
  EXPECT_GT(std::fabs(forward), 0.1);
}

TEST(Rope, Errors) {
  std::vector<float> x(8), table(3 * 4);
  std::vector<int32_t> positions{0, 3}, fine{0, 2}, negative{-1, 0};
  const Tensor rows = view(x, {2, 4}), angles = view(table, {3, 2, 2}), at = view(fine, {2});
  EXPECT_ERROR(internal, "head_dim is 3", rope(stream, rows, at, angles, 1, 3, 1));
  EXPECT_ERROR(internal, "head_dim is 3", rope_table(rope_frequencies(10.0f, 3), angles));
  EXPECT_ERROR(internal, "2 heads of 4 in 4 columns", rope(stream, rows, at, angles, 2, 4, 1));
  EXPECT_ERROR(internal, "position 3 of row 1", rope(stream, rows, view(positions, {2}), angles, 1, 4, 1));
  EXPECT_ERROR(internal, "position -1 of row 0", rope(stream, rows, view(negative, {2}), angles, 1, 4, 1));
  EXPECT_ERROR(internal, "positions", rope(stream, rows, at.slice(0, 1), angles, 1, 4, 1));
  EXPECT_ERROR(internal, "table", rope(stream, rows, at, angles, 1, 2, 1));
  EXPECT_ERROR(internal, "table", rope_table(rope_frequencies(10.0f, 6), angles));
  EXPECT_ERROR(internal, "direction", rope(stream, rows, at, angles, 1, 4, 0));
  EXPECT_ERROR(internal, "f32 or bf16",
               rope(stream, view(positions, {1, 2}), at.slice(0, 1), view(table, {6, 2, 1}), 1, 2, 1));
}

}  // namespace
}  // namespace notellm

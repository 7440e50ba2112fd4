#include "kernels/note_vector.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::normal;
using test::view;

Stream stream;

TEST(NoteVector, ByHand) {
  std::vector<float> v{3, 4, 0, 0}, z(4), norm(2), dz{1, 0, 5, 5}, dv(4);
  l2_normalize(stream, view(v, {2, 2}), view(z, {2, 2}), view(norm, {2}));
  EXPECT_FLOAT_EQ(z[0], 0.6f);
  EXPECT_FLOAT_EQ(z[1], 0.8f);
  EXPECT_EQ(z[2], 0.0f);
  EXPECT_EQ(norm, (std::vector<float>{5, 0}));
  l2_normalize_backward(stream, view(dz, {2, 2}), view(z, {2, 2}), view(norm, {2}), view(dv, {2, 2}));
  EXPECT_FLOAT_EQ(dv[0], (1 - 0.36f) / 5);
  EXPECT_FLOAT_EQ(dv[1], -0.48f / 5);
  EXPECT_EQ(dv[2], 0.0f) << "a zero row has no direction to turn";
}

TEST(NoteVector, AgainstDouble) {
  for (int64_t rows : {0, 1, 3, 400})
    for (int64_t d : {1, 7, 64, 128}) {
      std::vector<float> v = normal(rows * d, 1, 5.0f), z = v, norm(rows), dz = normal(rows * d, 2), dv = dz;
      l2_normalize(stream, view(z, {rows, d}), view(z, {rows, d}), view(norm, {rows}));
      l2_normalize_backward(stream, view(dv, {rows, d}), view(z, {rows, d}), view(norm, {rows}), view(dv, {rows, d}));
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0, along = 0, along_magnitude = 0;
        for (int64_t c = 0; c < d; ++c) squares += static_cast<double>(v[r * d + c]) * v[r * d + c];
        for (int64_t c = 0; c < d; ++c) {
          along += static_cast<double>(z[r * d + c]) * dz[r * d + c];
          along_magnitude += std::fabs(static_cast<double>(z[r * d + c]) * dz[r * d + c]);
        }
        const double length = std::sqrt(squares);
        test::expect_close(norm[r], length, length, 1);
        for (int64_t c = 0; c < d; ++c) {
          const int64_t i = r * d + c;
          test::expect_close(z[i], v[i] / length, std::fabs(v[i] / length), 3);
          test::expect_close(dv[i], (dz[i] - z[i] * along) / length,
                             (std::fabs(dz[i]) + std::fabs(z[i]) * along_magnitude) / length, 6);
        }
      }
    }
}

TEST(NoteVector, GradientIsTheDerivative) {
  const int64_t d = 5;
  std::vector<float> v = normal(d, 1), z(d), norm(1), dz = normal(d, 2), dv(d);
  l2_normalize(stream, view(v, {1, d}), view(z, {1, d}), view(norm, {1}));
  l2_normalize_backward(stream, view(dz, {1, d}), view(z, {1, d}), view(norm, {1}), view(dv, {1, d}));
  std::vector<double> x = test::widen(v);
  auto weighted = [&] {
    double squares = 0, total = 0;
    for (double value : x) squares += value * value;
    for (int64_t c = 0; c < d; ++c) total += dz[c] * x[c] / std::sqrt(squares);
    return total;
  };
  for (int64_t i = 0; i < d; ++i) EXPECT_NEAR(dv[i], test::difference(x, i, weighted), 1e-6);
}

TEST(NoteVector, LengthsWhoseSquareLeavesF32) {
  std::vector<float> v{3e30f, 4e30f, 3e-30f, 4e-30f}, z(4), norm(2);
  l2_normalize(stream, view(v, {2, 2}), view(z, {2, 2}), view(norm, {2}));
  for (int r = 0; r < 2; ++r) {
    EXPECT_FLOAT_EQ(z[2 * r], 0.6f);
    EXPECT_FLOAT_EQ(z[2 * r + 1], 0.8f);
  }
  EXPECT_FLOAT_EQ(norm[1], 5e-30f);
}

TEST(NoteVector, SameBitsForAnyThreads) {
  const int64_t rows = 500, d = 129;
  test::expect_same_bits([&] {
    std::vector<float> v = normal(rows * d, 1), dz = normal(rows * d, 2), norm(rows);
    l2_normalize(stream, view(v, {rows, d}), view(v, {rows, d}), view(norm, {rows}));
    l2_normalize_backward(stream, view(dz, {rows, d}), view(v, {rows, d}), view(norm, {rows}), view(dz, {rows, d}));
    return test::bytes_of(v, dz, norm);
  });
}

TEST(NoteVector, Errors) {
  std::vector<float> v(6), two(2);
  std::vector<bf16> half(6);
  const Tensor good = view(v, {2, 3}), turned = view(v, {3, 2}), norm = view(two, {2}), narrow = view(half, {2, 3});
  EXPECT_ERROR(internal, "v is bf16", l2_normalize(stream, narrow, good, norm));
  EXPECT_ERROR(internal, "z is", l2_normalize(stream, good, turned, norm));
  EXPECT_ERROR(internal, "norm", l2_normalize(stream, turned, turned, norm));
  EXPECT_ERROR(internal, "dz", l2_normalize_backward(stream, turned, good, norm, good));
  EXPECT_ERROR(internal, "z is", l2_normalize_backward(stream, good, narrow, norm, good));
  EXPECT_ERROR(internal, "norm", l2_normalize_backward(stream, turned, turned, norm, turned));
  EXPECT_ERROR(internal, "dv", l2_normalize_backward(stream, good, good, norm, turned));
}

}  // namespace
}  // namespace notellm

#include <cmath>
#include <limits>

#include "kernels/vector_math.h"
#include "tests/kernels/op_support.h"

namespace notellm {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// Distance from the true value in units of the last place of the correctly rounded one.
double ulps(float actual, double exact) {
  const float rounded = static_cast<float>(exact);
  const double unit = static_cast<double>(std::nextafter(rounded, infinity)) - rounded;
  return std::fabs(actual - exact) / unit;
}

TEST(VectorMath, ExpIsWithinTwoUlpsOverTheWholeRange) {
  double worst = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 1021) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const float scalar = vexp(x), lane = vexp(vbroadcast(x))[vector_lanes - 1];
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(scalar) && std::isnan(lane)) << std::hex << bits;
      continue;
    }
    ASSERT_EQ(scalar, lane) << x;
    const double exact = std::exp(static_cast<double>(x));
    if (std::isinf(static_cast<float>(exact)))
      ASSERT_EQ(scalar, infinity) << x;
    else
      worst = std::max(worst, ulps(scalar, exact));
  }
  EXPECT_LE(worst, 2.0);
}

TEST(VectorMath, ExpAtTheEnds) {
  EXPECT_EQ(vexp(0.0f), 1.0f);
  EXPECT_EQ(vexp(-0.0f), 1.0f);
  EXPECT_EQ(vexp(-infinity), 0.0f);
  EXPECT_EQ(vexp(-1e30f), 0.0f);
  EXPECT_EQ(vexp(infinity), infinity);
  EXPECT_EQ(vexp(1e30f), infinity);
  EXPECT_EQ(vexp(89.0f), infinity);
  for (float x : {-103.9f, -103.0f, -88.0f, -87.4f, -87.3f, 88.0f, 88.72f})  // subnormal results, and the largest
    EXPECT_LE(ulps(vexp(x), std::exp(static_cast<double>(x))), 2.0) << x;
}

TEST(VectorMath, ExpOrZeroIsExpButForSubnormals) {
  for (double x = -87.33; x < 88; x += 1.7e-5) {
    const float at = static_cast<float>(x);
    ASSERT_EQ(exp_or_zero(at), vexp(at)) << at;
    ASSERT_EQ(exp_or_zero(vbroadcast(at))[0], vexp(at)) << at;
  }
  for (float x : {-87.34f, -88.0f, -104.0f, -1e4f, -3e38f, -infinity}) {
    EXPECT_EQ(exp_or_zero(x), 0.0f) << x;
    EXPECT_EQ(exp_or_zero(vbroadcast(x))[0], 0.0f) << x;
  }
  EXPECT_TRUE(std::isnan(exp_or_zero(NAN)));
  EXPECT_TRUE(std::isnan(exp_or_zero(vbroadcast(NAN))[0]));
}

TEST(VectorMath, Bf16GoesThroughVectorsAsThroughScalars) {
  for (uint32_t first = 0; first < 65536; first += vector_lanes) {
    bf16 in[vector_lanes], out[vector_lanes];
    for (int lane = 0; lane < vector_lanes; ++lane) in[lane].bits = static_cast<uint16_t>(first + lane);
    vstore(out, vload(in));
    for (int lane = 0; lane < vector_lanes; ++lane)
      EXPECT_EQ(out[lane].bits, bf16(static_cast<float>(in[lane])).bits) << first + lane;
  }
}

TEST(VectorMath, StoreRoundsToNearestEven) {
  for (uint32_t upper : {0x3f80u, 0x3f81u, 0xbf81u, 0x7f7fu, 0x0001u, 0x7f80u, 0x7fc0u, 0xffffu})
    for (uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float value = std::bit_cast<float>(upper << 16 | lower);
      bf16 out[vector_lanes];
      vstore(out, vbroadcast(value));
      EXPECT_EQ(out[0].bits, bf16(value).bits) << std::hex << upper << " " << lower;
      EXPECT_EQ(out[0].bits, rounded<bf16>(value).bits);
    }
  EXPECT_EQ(rounded<bf16>(1.00390625f).bits, 0x3f80);  // halfway between 0x3f80 and 0x3f81: to the even one
  EXPECT_EQ(rounded<bf16>(1.01171875f).bits, 0x3f82);  // halfway between 0x3f81 and 0x3f82
}

TEST(VectorMath, MaximumAndSumOfExp) {
  EXPECT_EQ(max_of(nullptr, 0), -infinity);
  EXPECT_EQ(sum_of_exp(nullptr, 0.0f, 0), 0.0f);
  for (int64_t n = 1; n <= 3 * vector_lanes + 1; ++n) {
    std::vector<float> x = test::normal(n, static_cast<unsigned>(n));
    double sum = 0;
    for (float value : x) sum += std::exp(static_cast<double>(value) - 1.0);
    // n sums, exp, and the difference, whose rounding exp multiplies by |x − 1| < 6.
    test::expect_close(sum_of_exp(x.data(), 1.0f, n), sum, sum, static_cast<double>(n) + 4 + 6);
    for (int64_t at = 0; at < n; ++at) {
      std::vector<float> peaked = x;
      peaked[at] = 10.0f;
      EXPECT_EQ(max_of(peaked.data(), n), 10.0f) << at << " of " << n;
      peaked[(at + 1) % n] = std::nanf("");
      EXPECT_EQ(max_of(peaked.data(), n), n == 1 ? -infinity : 10.0f);
    }
  }
}

}  // namespace
}  // namespace notellm

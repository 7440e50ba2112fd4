#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "runtime/error.h"
#include "runtime/random.h"

namespace notellm {
namespace {

// Published known answers of Philox4x32-10 (Random123, tests/kat_vectors): counter words 0..3, key words 0..1.
TEST(RandomBits, PhiloxKnownAnswers) {
  EXPECT_EQ(random_bits(0, 0, 0), 0xe169c58d6627e8d5u);
  EXPECT_EQ(random_bits(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}), 0x41c83b0e408f276du);
  EXPECT_EQ(random_bits(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu), 0x94fdccebd16cfe09u);
}

TEST(RandomUnit, LiesInTheUnitIntervalWithItsMean) {
  const int n = 100000;
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    const double u = random_unit(5, i, 0);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1.0 / 12 / n));  // five standard deviations
}

TEST(Permute, IsABijectionForEverySmallSize) {
  for (uint64_t n = 1; n <= 300; ++n) {
    std::vector<int> hits(n, 0);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t image = permute(n * 31, n, i);
      ASSERT_LT(image, n);
      ++hits[image];
    }
    EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), static_cast<int64_t>(n)) << "n = " << n;
  }
}

TEST(Permute, SamplesOfABigSizeDoNotCollideAndSpreadOut) {
  const uint64_t n = 1'000'000'007;
  const int samples = 100000;
  std::set<uint64_t> images;
  double sum = 0;
  for (int i = 0; i < samples; ++i) {
    const uint64_t image = permute(3, n, i);
    ASSERT_LT(image, n);
    images.insert(image);
    sum += static_cast<double>(image);
  }
  EXPECT_EQ(images.size(), static_cast<size_t>(samples));
  EXPECT_NEAR(sum / samples / n, 0.5, 5 * std::sqrt(1.0 / 12 / samples));
  EXPECT_THROW(permute(3, n, n), Error);
}

// Each of the 5 places should hold each of the 5 elements in 1/5 of the keys.
TEST(Permute, KeysGiveAllPermutationsAlike) {
  const int n = 5, keys = 20000;
  int counts[5][5] = {};
  for (int key = 0; key < keys; ++key)
    for (int i = 0; i < n; ++i) ++counts[i][permute(random_bits(1, key, 0), n, i)];
  const double deviation = std::sqrt(keys * 0.2 * 0.8);
  for (auto& row : counts)
    for (int count : row) EXPECT_NEAR(count, keys * 0.2, 5 * deviation);
}

}  // namespace
}  // namespace notellm

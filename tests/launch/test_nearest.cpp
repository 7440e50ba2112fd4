#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "launch/nearest.h"
#include "runtime/random.h"

namespace notellm {
namespace {

// n random unit vectors of d dimensions.
std::vector<float> unit_vectors(int64_t n, int64_t d) {
  std::vector<float> values(n * d);
  for (int64_t i = 0; i < n; ++i) {
    double square = 0;
    for (int64_t k = 0; k < d; ++k) {
      values[i * d + k] = static_cast<float>(random_unit(7, i, k) - 0.5);
      square += double(values[i * d + k]) * values[i * d + k];
    }
    for (int64_t k = 0; k < d; ++k) values[i * d + k] /= static_cast<float>(std::sqrt(square));
  }
  return values;
}

// Indexes of all vectors by falling scalar product with the query, in double.
std::vector<int64_t> sorted_by_cosine(const std::vector<float>& all, int64_t d, const float* query) {
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t i = 0; i < std::ssize(all) / d; ++i) {
    double cosine = 0;
    for (int64_t k = 0; k < d; ++k) cosine += double(all[i * d + k]) * query[k];
    order.emplace_back(-cosine, i);
  }
  std::sort(order.begin(), order.end());
  std::vector<int64_t> rows;
  for (const auto& [cosine, row] : order) rows.push_back(row);
  return rows;
}

TEST(Nearest, FlatIsExact) {
  constexpr int64_t n = 300, d = 16, count = 5;
  const std::vector<float> all = unit_vectors(n, d);
  const Tensor vectors = Tensor::of(all.data(), {n, d});
  const NearestIndex index(IndexKind::flat, vectors);
  const std::vector<Neighbor> found = index.search(vectors.slice(10, 13), count);
  ASSERT_EQ(std::ssize(found), 3 * count);
  for (int64_t q = 0; q < 3; ++q) {
    const std::vector<int64_t> wanted = sorted_by_cosine(all, d, all.data() + (10 + q) * d);
    EXPECT_EQ(wanted[0], 10 + q);
    EXPECT_NEAR(found[q * count].cosine, 1, 1e-5);
    for (int64_t k = 0; k < count; ++k) EXPECT_EQ(found[q * count + k].row, wanted[k]) << "query " << q;
  }
}

TEST(Nearest, AsksForMoreThanThereAre) {
  const std::vector<float> all = unit_vectors(3, 4);
  for (const auto& [name, kind] : index_kinds()) {
    const NearestIndex index(kind, Tensor::of(all.data(), {3, 4}));
    const std::vector<Neighbor> found = index.search(Tensor::of(all.data(), {1, 4}), 5);
    EXPECT_EQ(found[0].row, 0) << name;
    EXPECT_EQ(found[4].row, -1) << name;
  }
}

// That an approximate index ranks by scalar product, largest first, and how good it says it is.
TEST(Nearest, ApproximateIndexesFindMostOfThem) {
  constexpr int64_t n = 2000, d = 16, count = 10;
  const std::vector<float> all = unit_vectors(n, d);
  const Tensor vectors = Tensor::of(all.data(), {n, d});
  for (const IndexKind kind : {IndexKind::hnsw, IndexKind::ivf}) {
    const NearestIndex index(kind, vectors);
    const std::vector<Neighbor> found = index.search(vectors.slice(0, 1), count);
    EXPECT_EQ(found[0].row, 0) << name_of(kind);
    for (int64_t k = 1; k < count; ++k) EXPECT_LE(found[k].cosine, found[k - 1].cosine) << name_of(kind);
    const SearchQuality quality = index.compare_with_exact(vectors);
    EXPECT_EQ(quality.queries, 1000);
    EXPECT_LE(quality.recall, 1);
    // ivf looks at 4 of 51 cells: chosen at random, they would hold 8 % of the nearest vectors; hnsw looks everywhere.
    EXPECT_GE(quality.recall, kind == IndexKind::hnsw ? 0.9 : 0.16) << name_of(kind);
  }
}

TEST(Nearest, FlatComparedWithExactIsAllThere) {
  const std::vector<float> all = unit_vectors(7, 4);
  const Tensor vectors = Tensor::of(all.data(), {7, 4});
  const SearchQuality quality = NearestIndex(IndexKind::flat, vectors).compare_with_exact(vectors);
  EXPECT_EQ(quality.queries, 7);
  EXPECT_EQ(quality.recall, 1);
}

}  // namespace
}  // namespace notellm

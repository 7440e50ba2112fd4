// New tokens of sequences whose keys and values lie in runs of a cache's rows, and their attention by plain loops in
// double: for both devices.
#pragma once

#include <fmt/format.h>

#include "kernels/decode_attention.h"
#include "tests/kernels/op_support.h"

namespace notellm::test {

template <class T>
struct DecodeCase {
  int64_t heads, kv_heads, head_dim;
  std::vector<int64_t> keys;  // of each query's sequence, without the new token
  int64_t rows = 7;           // of the cache
  std::vector<T> q, kv, cache;
  std::vector<int32_t> runs, place;

  // Three runs a query: some keys, none, the rest; unused rows, full of NaN, between them.
  DecodeCase(int64_t heads, int64_t kv_heads, int64_t head_dim, std::vector<int64_t> keys_of)
      : heads(heads), kv_heads(kv_heads), head_dim(head_dim), keys(std::move(keys_of)) {
    const auto run = [&](int64_t n) {
      runs.push_back(static_cast<int32_t>(rows));
      rows += n;
      runs.push_back(static_cast<int32_t>(rows));
      rows += 2;
    };
    for (const int64_t n : keys) {
      run(n / 3);
      run(0);
      run(n - n / 3);
    }
    for (int64_t i = 0; i < queries(); ++i) place.push_back(static_cast<int32_t>(6 - i));  // before all runs
    q = cast<T>(normal(queries() * heads * head_dim, 1));
    kv = cast<T>(normal(queries() * row_size(), 2));
    cache = cast<T>(normal(rows * row_size(), 3));
    std::vector<bool> used(static_cast<size_t>(rows));
    for (size_t r = 0; r < runs.size(); r += 2)
      for (int32_t row = runs[r]; row < runs[r + 1]; ++row) used[row] = true;
    for (int64_t row = 0; row < rows; ++row)
      if (!used[row]) std::fill_n(cache.begin() + row * row_size(), row_size(), T(std::nanf("")));
  }

  int64_t queries() const { return std::ssize(keys); }
  int64_t row_size() const { return 2 * kv_heads * head_dim; }
  std::string name() const {
    return fmt::format("{} heads of {} over {}, {} queries", heads, head_dim, kv_heads, queries());
  }

  // o of all queries.
  void expect_attention(const std::vector<T>& o) const {
    for (int64_t i = 0; i < queries(); ++i)
      for (int64_t h = 0; h < heads; ++h) expect_head(o, i, h);
  }
  // What the cache holds: the new rows at their places, all else as it was.
  void expect_cache(const std::vector<T>& after) const {
    std::vector<T> expected = cache;
    for (int64_t i = 0; i < queries(); ++i)
      std::copy_n(kv.begin() + i * row_size(), row_size(), expected.begin() + place[i] * row_size());
    EXPECT_EQ(bytes_of(after), bytes_of(expected));
  }

 private:
  void expect_head(const std::vector<T>& o, int64_t i, int64_t h) const {
    const int64_t g = h / (heads / kv_heads);
    const auto value = [](T x) { return static_cast<double>(static_cast<float>(x)); };
    std::vector<const T*> sequence;
    for (int64_t r = 3 * i; r < 3 * i + 3; ++r)
      for (int32_t row = runs[2 * r]; row < runs[2 * r + 1]; ++row) sequence.push_back(cache.data() + row * row_size());
    sequence.push_back(kv.data() + i * row_size());
    std::vector<double> scores;
    double most = -INFINITY, largest = 0, sum = 0;
    for (const T* row : sequence) {
      double score = 0, magnitude = 0;
      for (int64_t c = 0; c < head_dim; ++c) {
        const double term = value(q[(i * heads + h) * head_dim + c]) * value(row[g * head_dim + c]);
        score += term;
        magnitude += std::fabs(term);
      }
      scores.push_back(score / std::sqrt(static_cast<double>(head_dim)));
      largest = std::max(largest, magnitude / std::sqrt(static_cast<double>(head_dim)));
      most = std::max(most, scores.back());
    }
    for (double& s : scores) sum += s = std::exp(s - most);
    for (int64_t c = 0; c < head_dim; ++c) {
      double exact = 0, magnitude = 0;
      for (size_t j = 0; j < sequence.size(); ++j) {
        const double term = scores[j] / sum * value(sequence[j][(kv_heads + g) * head_dim + c]);
        exact += term;
        magnitude += std::fabs(term);
      }
      // A score is off by (head_dim + 3) roundings of its terms' sizes, and so, relatively, is its weight, with 4 more
      // of exp; weights come in above and below the line; then the sums over keys, and as many rescalings at most.
      const double roundings = 2 * ((static_cast<double>(head_dim) + 3) * largest + 4) + 4.0 * sequence.size();
      expect_close(o[(i * heads + h) * head_dim + c], exact, magnitude, roundings,
                   fmt::format("query {}, head {}, element {}", i, h, c));
    }
  }
};

template <class T>
std::vector<DecodeCase<T>> decode_cases() {
  return {{1, 1, 1, {0}},      {2, 1, 4, {1, 0, 5}}, {8, 4, 8, {15, 16, 17, 200}},
          {4, 4, 64, {33, 7}}, {6, 2, 20, {3, 40}},  {4, 1, 128, {31, 32}},
          {2, 2, 200, {20}},   {3, 3, 16, {}},       {1, 1, 64, {6, 6, 6, 6, 6}}};
}

}  // namespace notellm::test

// Tiles of scores with many ties and some NaN, and what a plain loop counts in them: for both devices.
#pragma once

#include <cmath>

#include "tests/kernels/op_support.h"

namespace notellm::test {

struct RankCase {
  int64_t queries, width, columns, first;
  bool with_prior;
  std::vector<float> scores, prior, target;
  std::vector<int32_t> rows, left_out, before;

  int64_t n() const { return std::ssize(rows); }
  std::string name() const {
    return std::to_string(n()) + " questions, " + std::to_string(columns) + " of " + std::to_string(width) + " columns";
  }
  Tensor scores_tensor() const { return Tensor::of(scores.data(), {queries, width}); }
  Tensor prior_tensor() const { return with_prior ? Tensor::of(prior.data(), {columns}) : Tensor(); }

  std::vector<int32_t> expected() const {
    std::vector<int32_t> counts = before;
    for (int64_t i = 0; i < n(); ++i)
      for (int64_t x = 0; x < columns; ++x) {
        if (first + x == left_out[2 * i] || first + x == left_out[2 * i + 1]) continue;
        const float score = scores[rows[i] * width + x] + (with_prior ? prior[x] : 0.0f);
        counts[2 * i] += !(score <= target[i]);
        counts[2 * i + 1] += score == target[i];
      }
    return counts;
  }
};

inline std::vector<RankCase> rank_cases() {
  std::vector<RankCase> cases;
  for (const auto& [queries, width, columns, n] :
       {std::array<int64_t, 4>{3, 8, 8, 0}, {1, 1, 1, 1}, {5, 40, 33, 17}, {7, 1024, 1024, 300}, {4, 1024, 1000, 9}})
    for (bool with_prior : {false, true}) {
      RankCase c{queries, width, columns, 50, with_prior, {}, {}, {}, {}, {}, {}};
      for (int32_t v : integers(queries * width, 6, 1)) c.scores.push_back(v == 5 ? NAN : static_cast<float>(v));
      for (int32_t v : integers(columns, 3, 2)) c.prior.push_back(static_cast<float>(v));
      for (int32_t v : integers(n, 6, 3)) c.target.push_back(static_cast<float>(v));
      c.rows = integers(n, static_cast<int32_t>(queries), 4);
      // Inside and outside the tile, now and then the same twice.
      for (int32_t v : integers(2 * n, static_cast<int32_t>(2 * columns), 5)) c.left_out.push_back(40 + v);
      for (int64_t i = 0; i < n; i += 5) c.left_out[2 * i] = c.left_out[2 * i + 1];
      c.before = integers(2 * n, 100, 6);
      cases.push_back(std::move(c));
    }
  return cases;
}

}  // namespace notellm::test

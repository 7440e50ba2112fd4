// InfoNCE for tests: random problems, and the results in double.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "tests/kernels/op_support.h"

namespace notellm::test::infonce {

// Rows [first, first + rows) of `cols` unit vectors, with their mask: all that infonce reads.
struct Problem {
  int64_t rows, first, cols, d;
  float tau;
  std::vector<float> z, log_q;
  std::vector<std::set<int32_t>> masked;  // of each row
};

struct Result {
  std::vector<double> lse, dtau = {0.0};
  std::vector<float> positive, similarity, dz_rows, dz_all;
};

// The mask of infonce(): rows' columns, and where each row's begin.
struct Mask {
  std::vector<int32_t> begin{0}, columns;
  explicit Mask(const Problem& p) {
    for (const auto& row : p.masked) {
      columns.insert(columns.end(), row.begin(), row.end());
      begin.push_back(static_cast<int32_t>(columns.size()));
    }
  }
};

// The same in double, by the formulas of the header.
struct Exact {
  std::vector<double> loss, lse, positive, similarity, dz_rows, dz_all;
  double dtau = 0, dtau_magnitude = 0;  // Σ, and Σ of the absolute terms: rows' terms cancel
};

inline Exact exact(const Problem& p, double scale) {
  Exact e{std::vector<double>(p.rows), std::vector<double>(p.rows),       std::vector<double>(p.rows),
          std::vector<double>(p.rows), std::vector<double>(p.rows * p.d), std::vector<double>(p.cols * p.d)};
  const double factor = std::exp(static_cast<double>(p.tau));
  std::vector<double> cosine(p.cols), logit(p.cols);
  for (int64_t i = 0; i < p.rows; ++i) {
    const float* own = p.z.data() + (p.first + i) * p.d;
    const int64_t positive = (p.first + i) ^ 1;
    double best = -1e300, sum = 0, others = 0, negatives = 0, similarity = 0;
    for (int64_t j = 0; j < p.cols; ++j) {
      cosine[j] = 0;
      for (int64_t c = 0; c < p.d; ++c) cosine[j] += static_cast<double>(own[c]) * p.z[j * p.d + c];
      logit[j] = cosine[j] * factor - (p.log_q.empty() ? 0.0 : p.log_q[j]);
      if (p.masked[i].count(static_cast<int32_t>(j))) continue;
      best = std::max(best, logit[j]);
      if (j != positive) negatives += 1, similarity += cosine[j];
    }
    for (int64_t j = 0; j < p.cols; ++j)
      if (!p.masked[i].count(static_cast<int32_t>(j))) {
        sum += std::exp(logit[j] - best);
        if (j != positive) others += std::exp(logit[j] - logit[positive]);
      }
    e.lse[i] = best + std::log(sum);
    e.positive[i] = logit[positive];
    e.loss[i] = std::log1p(others);
    e.similarity[i] = negatives > 0 ? similarity / negatives : 0;
    for (int64_t j = 0; j < p.cols; ++j) {
      if (p.masked[i].count(static_cast<int32_t>(j))) continue;
      const double g = scale * factor * (j == positive ? std::expm1(-e.loss[i]) : std::exp(logit[j] - e.lse[i]));
      e.dtau += g * cosine[j];
      e.dtau_magnitude += std::fabs(g * cosine[j]);
      for (int64_t c = 0; c < p.d; ++c) {
        e.dz_rows[i * p.d + c] += g * p.z[j * p.d + c];
        e.dz_all[j * p.d + c] += g * own[c];
      }
    }
  }
  return e;
}

// Unit vectors scattered around a few centres, so that cosines reach from −1 to nearly 1; pairs lie close.
inline Problem make(int64_t rows, int64_t first, int64_t cols, int64_t d, float tau, bool log_q, int64_t also_masked,
                    float spread = 0.5f) {
  Problem p{rows, first, cols, d, tau, normal(cols * d, 1, spread), {}, std::vector<std::set<int32_t>>(rows)};
  const std::vector<float> centres = normal(8 * d, 2);
  for (int64_t j = 0; j < cols; ++j) {
    double squares = 0;
    for (int64_t c = 0; c < d; ++c) squares += std::pow(p.z[j * d + c] += centres[(j / 2 % 8) * d + c], 2);
    for (int64_t c = 0; c < d; ++c) p.z[j * d + c] = static_cast<float>(p.z[j * d + c] / std::sqrt(squares));
  }
  if (log_q) p.log_q = normal(cols, 3, 2.0f);
  const std::vector<int32_t> others = integers(rows * also_masked, static_cast<int32_t>(cols), 4);
  for (int64_t i = 0; i < rows; ++i) {
    p.masked[i].insert(static_cast<int32_t>(first + i));
    for (int64_t k = 0; k < also_masked; ++k)
      if (others[i * also_masked + k] != ((first + i) ^ 1)) p.masked[i].insert(others[i * also_masked + k]);
  }
  return p;
}

inline double norm(const std::vector<double>& x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}
// |a − e| / |e|, by the Euclidean norm.
inline double distance(const std::vector<float>& a, const std::vector<double>& e) {
  std::vector<double> difference = widen(a);
  for (size_t i = 0; i < e.size(); ++i) difference[i] -= e[i];
  return norm(difference) / norm(e);
}

// Runs `run(problem, scale)` and compares with double.
template <class Run>
void check(Run&& run, const Problem& p, double tolerance = 1e-5) {
  SCOPED_TRACE(fmt::format("rows {}+{} of {}, d {}, tau {}", p.first, p.rows, p.cols, p.d, p.tau));
  const float scale = 0.01f;
  const Result r = run(p, scale);
  const Exact e = exact(p, scale);
  double loss = 0, loss_exact = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    // A cosine of unit vectors: at most d roundings of numbers up to 1. log_q is added in f32.
    const double magnitude = std::exp(p.tau) * static_cast<double>(p.d) + 20;
    expect_close(r.positive[i], e.positive[i], magnitude, 1);
    ASSERT_NEAR(r.lse[i], e.lse[i], f32_roundoff * (magnitude + static_cast<double>(p.cols)));
    expect_close(r.similarity[i], e.similarity[i], static_cast<double>(p.d) + 256, 1);
    loss += r.lse[i] - r.positive[i];
    loss_exact += e.loss[i];
  }
  EXPECT_NEAR(loss, loss_exact, tolerance * loss_exact);
  EXPECT_LT(distance(r.dz_rows, e.dz_rows), tolerance);
  EXPECT_LT(distance(r.dz_all, e.dz_all), tolerance);
  EXPECT_NEAR(r.dtau[0], e.dtau, tolerance * e.dtau_magnitude);
}

}  // namespace notellm::test::infonce

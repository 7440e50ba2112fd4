#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "kernels/infonce.h"
#include "kernels/note_vector.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"

namespace notellm {
namespace {

using test::normal;
using test::view;

Stream stream;

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

Result run(const Problem& p, float scale) {
  std::vector<float> rows(p.z.begin() + p.first * p.d, p.z.begin() + (p.first + p.rows) * p.d), all = p.z,
                                                                                                log_q = p.log_q;
  std::vector<int32_t> begin{0}, columns;
  for (const auto& row : p.masked) {
    columns.insert(columns.end(), row.begin(), row.end());
    begin.push_back(static_cast<int32_t>(columns.size()));
  }
  const int64_t size = infonce_workspace(p.rows, p.cols);
  std::vector<float> workspace(size);
  Result r;
  r.lse.resize(p.rows);
  r.positive.resize(p.rows);
  r.similarity.resize(p.rows);
  r.dz_rows.resize(p.rows * p.d);
  r.dz_all.resize(p.cols * p.d);
  const Tensor z_rows = view(rows, {p.rows, p.d}), z_all = view(all, {p.cols, p.d});
  const Tensor correction = log_q.empty() ? Tensor() : view(log_q, {p.cols});
  const Tensor mask_begin = view(begin, {p.rows + 1}),
               mask_columns = view(columns, {static_cast<int64_t>(columns.size())});
  infonce(stream, z_rows, p.first, z_all, p.tau, correction, mask_begin, mask_columns, view(r.lse, {p.rows}),
          view(r.positive, {p.rows}), view(r.similarity, {p.rows}), view(workspace, {size}));
  infonce_backward(stream, z_rows, p.first, z_all, p.tau, correction, mask_begin, mask_columns, view(r.lse, {p.rows}),
                   scale, view(r.dz_rows, {p.rows, p.d}), view(r.dz_all, {p.cols, p.d}), view(r.dtau, {1}),
                   view(workspace, {size}));
  return r;
}

// The same in double, by the formulas of the header.
struct Exact {
  std::vector<double> loss, lse, positive, similarity, dz_rows, dz_all;
  double dtau = 0, dtau_magnitude = 0;  // Σ, and Σ of the absolute terms: rows' terms cancel
};

Exact exact(const Problem& p, double scale) {
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
Problem make(int64_t rows, int64_t first, int64_t cols, int64_t d, float tau, bool log_q, int64_t also_masked,
             float spread = 0.5f) {
  Problem p{rows, first, cols, d, tau, normal(cols * d, 1, spread), {}, std::vector<std::set<int32_t>>(rows)};
  const std::vector<float> centres = normal(8 * d, 2);
  for (int64_t j = 0; j < cols; ++j) {
    double squares = 0;
    for (int64_t c = 0; c < d; ++c) squares += std::pow(p.z[j * d + c] += centres[(j / 2 % 8) * d + c], 2);
    for (int64_t c = 0; c < d; ++c) p.z[j * d + c] = static_cast<float>(p.z[j * d + c] / std::sqrt(squares));
  }
  if (log_q) p.log_q = normal(cols, 3, 2.0f);
  const std::vector<int32_t> others = test::integers(rows * also_masked, static_cast<int32_t>(cols), 4);
  for (int64_t i = 0; i < rows; ++i) {
    p.masked[i].insert(static_cast<int32_t>(first + i));
    for (int64_t k = 0; k < also_masked; ++k)
      if (others[i * also_masked + k] != ((first + i) ^ 1)) p.masked[i].insert(others[i * also_masked + k]);
  }
  return p;
}

double norm(const std::vector<double>& x) { return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0)); }
// |a − e| / |e|, by the Euclidean norm.
double distance(const std::vector<float>& a, const std::vector<double>& e) {
  std::vector<double> difference = test::widen(a);
  for (size_t i = 0; i < e.size(); ++i) difference[i] -= e[i];
  return norm(difference) / norm(e);
}

void check(const Problem& p, double tolerance = 1e-5) {
  SCOPED_TRACE(fmt::format("rows {}+{} of {}, d {}, tau {}", p.first, p.rows, p.cols, p.d, p.tau));
  const float scale = 0.01f;
  const Result r = run(p, scale);
  const Exact e = exact(p, scale);
  double loss = 0, loss_exact = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    // A cosine of unit vectors: at most d roundings of numbers up to 1. log_q is added in f32.
    const double magnitude = std::exp(p.tau) * static_cast<double>(p.d) + 20;
    test::expect_close(r.positive[i], e.positive[i], magnitude, 1);
    ASSERT_NEAR(r.lse[i], e.lse[i], test::f32_roundoff * (magnitude + static_cast<double>(p.cols)));
    test::expect_close(r.similarity[i], e.similarity[i], static_cast<double>(p.d) + 256, 1);
    loss += r.lse[i] - r.positive[i];
    loss_exact += e.loss[i];
  }
  EXPECT_NEAR(loss, loss_exact, tolerance * loss_exact);
  EXPECT_LT(distance(r.dz_rows, e.dz_rows), tolerance);
  EXPECT_LT(distance(r.dz_all, e.dz_all), tolerance);
  EXPECT_NEAR(r.dtau[0], e.dtau, tolerance * e.dtau_magnitude);
}

TEST(InfoNce, ByHand) {
  // Two pairs along the axes, e^tau = 1. Row 0 leaves out itself and sees cosines 1, 0, 0.
  Problem p{4, 0, 4, 2, 0.0f, {1, 0, 1, 0, 0, 1, 0, 1}, {}, {{0}, {1}, {2}, {3}}};
  const Result r = run(p, 1.0f);
  const double e = std::exp(1.0), other = 1 / (e + 2);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(r.lse[i], std::log(e + 2), 1e-7);
    EXPECT_FLOAT_EQ(r.positive[i], 1.0f);
    EXPECT_FLOAT_EQ(r.similarity[i], 0.0f);
  }
  // P − Y of row 0: e/(e+2) − 1 = −2·other at its positive (1, 0), `other` at the two of (0, 1).
  EXPECT_NEAR(r.dz_rows[0], -2 * other, 1e-7);
  EXPECT_NEAR(r.dz_rows[1], 2 * other, 1e-7);
  // Column 0 is row 1's positive and a negative of rows 2 and 3.
  EXPECT_NEAR(r.dz_all[0], -2 * other, 1e-7);
  EXPECT_NEAR(r.dz_all[1], 2 * other, 1e-7);
  EXPECT_NEAR(r.dtau[0], 4 * -2 * other, 1e-6);
}

TEST(InfoNce, APairAloneHasNothingToLearn) {
  Problem p{2, 0, 2, 2, 3.0f, {1, 0, 0, 1}, {}, {{0}, {1}}};
  const Result r = run(p, 1.0f);
  for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(r.lse[i], r.positive[i]);
  EXPECT_EQ(r.similarity[0], 0.0f) << "no negatives";
  for (float value : r.dz_rows) EXPECT_EQ(value, 0.0f);
  EXPECT_EQ(r.dtau[0], 0.0);
}

TEST(InfoNce, AgainstDouble) {
  const float hot = std::log(100.0f);
  check(make(6, 0, 6, 5, 3.0f, false, 0));
  check(make(1, 3, 8, 3, 1.0f, true, 2));
  check(make(64, 0, 64, 16, hot, false, 3));
  check(make(130, 90, 260, 32, hot, true, 5));      // one tile and a bit, both ways
  check(make(384, 0, 768, 48, 3.0f, true, 10));     // three tiles each way, full
  check(make(20, 600, 1500, 128, hot, false, 40));  // more tiles across than down
  check(make(900, 0, 900, 32, hot, false, 1));      // more tiles down than across
}

TEST(InfoNce, SmallLossesKeepTheirDigits) {
  // Tight pairs far from each other: the loss is the small difference of two numbers near 100.
  for (int64_t d : {5, 6, 8, 10}) {
    const Problem p = make(16, 0, 16, d, std::log(100.0f), false, 0, 0.2f);
    const Exact e = exact(p, 1.0);
    ASSERT_LT(std::accumulate(e.loss.begin(), e.loss.end(), 0.0), 1e-6);
    ASSERT_GT(*std::min_element(e.positive.begin(), e.positive.end()), 80.0);
    // One difference of two S makes the loss; each is off by the d roundings of its cosine and its own.
    check(p, 2 * static_cast<double>(d + 1) * 100 * test::f32_roundoff);
  }
}

TEST(InfoNce, ProbabilitiesOfARowSumToOne) {
  // All vectors are (1, small): the first coordinate of a row's gradient is e^tau (Σ_j P_ij − 1) = 0, with every S near
  // 90, where a step of f32 is 7.6e-6, 128 roundoffs. What may remain are the random roundings of exp and of the sum of
  // 64 terms, forward and backward: their root mean square over the rows is some roundoffs, that of an lse in f32 would
  // be 37.
  const float factor = 90.0f;
  Problem p = make(64, 0, 64, 2, std::log(factor), false, 0);
  const std::vector<float> small = normal(64, 5, 0.05f);
  for (int64_t j = 0; j < 64; ++j) p.z[2 * j] = 1.0f, p.z[2 * j + 1] = small[j];
  const Result r = run(p, 1.0f);
  double squares = 0;
  for (int64_t i = 0; i < 64; ++i) squares += std::pow(r.dz_rows[2 * i] / factor, 2);
  EXPECT_LT(std::sqrt(squares / 64), 16 * test::f32_roundoff);
}

TEST(InfoNce, AWholeTileMaskedFirst) {
  // Row 0 of 600 columns leaves out the first 560 but its positive lies beyond: nothing is left of the first tile.
  Problem p = make(2, 580, 600, 8, 2.0f, true, 0);
  for (int32_t j = 0; j < 560; ++j) p.masked[0].insert(j);
  for (int32_t j = 0; j < 600; ++j)
    if (j != 580) p.masked[1].insert(j);  // no negatives at all
  check(p);
}

TEST(InfoNce, RowsOfRanksMakeTheWhole) {
  const Problem whole = make(640, 0, 640, 24, 3.0f, true, 4);
  const Result all = run(whole, 1.0f);
  std::vector<double> columns(all.dz_all.size());
  double dtau = 0;
  for (int64_t first : {0, 130, 400}) {
    Problem part = whole;
    part.first = first;
    part.rows = (first == 0 ? 130 : first == 130 ? 400 : 640) - first;
    part.masked.assign(whole.masked.begin() + first, whole.masked.begin() + first + part.rows);
    const Result r = run(part, 1.0f);
    for (int64_t i = 0; i < part.rows; ++i)
      EXPECT_NEAR(r.lse[i], all.lse[first + i], 1e-6 * std::fabs(all.lse[first + i]));
    for (size_t k = 0; k < columns.size(); ++k) columns[k] += r.dz_all[k];
    dtau += r.dtau[0];
  }
  EXPECT_LT(distance(all.dz_all, columns), 1e-6);
  EXPECT_NEAR(all.dtau[0], dtau, 1e-6 * std::fabs(dtau));
}

TEST(InfoNce, GradientsAreAddedTo) {
  const Problem p = make(6, 0, 6, 4, 2.0f, false, 0);
  const Result once = run(p, 1.0f);
  std::vector<float> rows = p.z, all = p.z, dz_rows(24, 5.0f), dz_all(24, 7.0f), workspace(infonce_workspace(6, 6));
  std::vector<int32_t> begin{0, 1, 2, 3, 4, 5, 6}, columns{0, 1, 2, 3, 4, 5};
  std::vector<double> lse = once.lse, dtau{11.0};
  infonce_backward(stream, view(rows, {6, 4}), 0, view(all, {6, 4}), 2.0f, {}, view(begin, {7}), view(columns, {6}),
                   view(lse, {6}), 1.0f, view(dz_rows, {6, 4}), view(dz_all, {6, 4}), view(dtau, {1}),
                   view(workspace, {infonce_workspace(6, 6)}));
  for (size_t i = 0; i < dz_rows.size(); ++i) {
    EXPECT_NEAR(dz_rows[i], 5.0f + once.dz_rows[i], 1e-5);
    EXPECT_NEAR(dz_all[i], 7.0f + once.dz_all[i], 1e-5);
  }
  EXPECT_NEAR(dtau[0], 11.0 + once.dtau[0], 1e-12);
}

TEST(InfoNce, GradientIsTheDerivative) {
  Problem p = make(3, 2, 8, 4, 0.7f, true, 1);
  const Result r = run(p, 1.0f);
  // The loss as a function of rows, columns and tau, each apart.
  std::vector<double> rows(3 * 4), all = test::widen(p.z), tau{p.tau};
  std::copy_n(all.begin() + 2 * 4, rows.size(), rows.begin());
  auto loss = [&] {
    double total = 0;
    for (int64_t i = 0; i < 3; ++i) {
      double sum = 0, positive = 0;
      for (int64_t j = 0; j < 8; ++j) {
        double logit = -p.log_q[j];
        for (int64_t c = 0; c < 4; ++c) logit += rows[i * 4 + c] * all[j * 4 + c] * std::exp(tau[0]);
        if (!p.masked[i].count(static_cast<int32_t>(j))) sum += std::exp(logit);
        if (j == ((2 + i) ^ 1)) positive = logit;
      }
      total += std::log(sum) - positive;
    }
    return total;
  };
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_NEAR(r.dz_rows[i], test::difference(rows, i, loss), 1e-5);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(r.dz_all[i], test::difference(all, i, loss), 1e-5);
  EXPECT_NEAR(r.dtau[0], test::difference(tau, 0, loss), 1e-5);
}

TEST(InfoNce, SameBitsForAnyThreads) {
  const Problem p = make(600, 40, 700, 20, 3.0f, true, 3);
  test::expect_same_bits([&] {
    const Result r = run(p, 1.0f);
    return test::bytes_of(r.lse, r.dtau) + test::bytes_of(r.positive, r.similarity, r.dz_rows, r.dz_all);
  });
}

TEST(InfoNce, NanIsSeen) {
  Problem p = make(4, 0, 4, 4, 1.0f, false, 0);
  p.z[0] = std::nanf("");
  EXPECT_TRUE(std::isnan(run(p, 1.0f).lse[2]));
  p.z[4] = std::nanf("");  // rows 2 and 3 have nothing but NaN to compare with
  EXPECT_TRUE(std::isnan(run(p, 1.0f).lse[2]));
}

TEST(InfoNce, Golden) {
  NOTELLM_NEEDS_SHARED("golden/objective.json");
  const auto golden = nlohmann::json::parse(std::ifstream(test::shared_path("golden/objective.json")));
  ASSERT_GT(golden["cases"].size(), 0u);
  for (const auto& item : golden["cases"]) {
    SCOPED_TRACE(item["name"].get<std::string>());
    const int64_t cols = static_cast<int64_t>(item["note_ids"].size()), d = item["d"];
    Problem p{
        cols, 0, cols, d, item["tau"].get<float>(), item["note_vectors"], {}, std::vector<std::set<int32_t>>(cols)};
    if (!item["log_q"].is_null()) p.log_q = item["log_q"].get<std::vector<float>>();
    for (int64_t i = 0; i < cols; ++i) p.masked[i].insert(static_cast<int32_t>(i));
    for (const auto& pair : item["masked_pairs"]) p.masked[pair[0].get<int64_t>()].insert(pair[1].get<int32_t>());
    std::vector<float> lengths(cols);
    l2_normalize(stream, view(p.z, {cols, d}), view(p.z, {cols, d}), view(lengths, {cols}));
    const double share = 1 / (1 + item["alpha"].get<double>());
    Result r = run(p, static_cast<float>(share / static_cast<double>(cols)));
    double loss = 0;
    for (int64_t i = 0; i < cols; ++i) loss += (r.lse[i] - r.positive[i]) / static_cast<double>(cols);
    EXPECT_NEAR(loss, item["loss_cl"].get<double>(), 1e-5 * loss);
    EXPECT_NEAR(r.dtau[0], item["grad_tau"].get<double>(), 1e-5 * r.dtau[0]);
    for (size_t k = 0; k < r.dz_all.size(); ++k) r.dz_all[k] += r.dz_rows[k];
    l2_normalize_backward(stream, view(r.dz_all, {cols, d}), view(p.z, {cols, d}), view(lengths, {cols}),
                          view(r.dz_all, {cols, d}));
    EXPECT_LT(distance(r.dz_all, item["grad_note_vectors"].get<std::vector<double>>()), 1e-5);
  }
}

TEST(InfoNce, Errors) {
  std::vector<float> z(8), q(4), out(4), workspace(infonce_workspace(4, 4)), odd(6), d_all(8);
  std::vector<double> lse(4), dtau(1);
  std::vector<int32_t> begin{0, 1, 2, 3, 4}, columns{0, 1, 2, 3};
  const Tensor all = view(z, {4, 2}), rows4 = view(out, {4}), l = view(lse, {4}), b = view(begin, {5}),
               m = view(columns, {4});
  const Tensor w = view(workspace, {infonce_workspace(4, 4)}), none;
  auto forward = [&](Tensor rows, int64_t first, Tensor z_all, Tensor log_q, Tensor mask_begin, Tensor mask, Tensor l,
                     Tensor out, Tensor work) {
    infonce(stream, rows, first, z_all, 1, log_q, mask_begin, mask, l, out, rows4, work);
  };
  EXPECT_ERROR(internal, "z_rows", forward(view(odd, {2, 3}), 0, all, none, b, m, l, rows4, w));
  EXPECT_ERROR(internal, "3 columns",
               forward(view(odd, {3, 2}), 0, view(odd, {3, 2}), none, b, m, l.slice(0, 3), rows4, w));
  EXPECT_ERROR(internal, "rows 1..5 of 4", forward(all, 1, all, none, b, m, l, rows4, w));
  EXPECT_ERROR(internal, "rows -1..3 of 4", forward(all, -1, all, none, b, m, l, rows4, w));
  EXPECT_ERROR(internal, "log_q", forward(all, 0, all, rows4.slice(0, 3), b, m, l, rows4, w));
  EXPECT_ERROR(internal, "row_lse is f32", forward(all, 0, all, none, b, m, rows4, rows4, w));
  EXPECT_ERROR(internal, "row_positive", forward(all, 0, all, none, b, m, l, rows4.slice(0, 3), w));
  EXPECT_ERROR(internal, "workspace", forward(all, 0, all, none, b, m, l, rows4, w.slice(0, 10)));
  EXPECT_ERROR(internal, "mask_begin", forward(all, 0, all, none, b.slice(0, 4), m, l, rows4, w));
  EXPECT_ERROR(internal, "mask_columns", forward(all, 0, all, none, b, m.slice(0, 3), l, rows4, w));
  auto with_columns = [&](std::vector<int32_t> mask) {
    std::vector<int32_t> starts{0, static_cast<int32_t>(mask.size()) - 3};
    for (int k = 2; k >= 0; --k) starts.push_back(static_cast<int32_t>(mask.size()) - k);
    forward(all, 0, all, none, view(starts, {5}), view(mask, {static_cast<int64_t>(mask.size())}), l, rows4, w);
  };
  with_columns({0, 2, 1, 2, 3});
  EXPECT_ERROR(internal, "row 0 masks column 1", with_columns({0, 1, 1, 2, 3}));  // its positive
  EXPECT_ERROR(internal, "row 0 masks column 2 after 3", with_columns({0, 3, 2, 1, 2, 3}));
  EXPECT_ERROR(internal, "row 0 masks column 4", with_columns({0, 4, 1, 2, 3}));
  EXPECT_ERROR(internal, "row 0 does not mask itself", with_columns({2, 1, 2, 3}));
  std::vector<int32_t> falling{0, 2, 1, 3, 4};
  EXPECT_ERROR(internal, "mask_begin", forward(all, 0, all, none, view(falling, {5}), m, l, rows4, w));
  const Tensor dz = view(d_all, {4, 2}), dt = view(dtau, {1});
  auto backward = [&](Tensor dz_rows, Tensor dz_all, Tensor d_tau) {
    infonce_backward(stream, all, 0, all, 1, none, b, m, l, 1, dz_rows, dz_all, d_tau, w);
  };
  EXPECT_ERROR(internal, "dz_rows", backward(dz.slice(0, 3), dz, dt));
  EXPECT_ERROR(internal, "dz_all", backward(dz, dz.slice(0, 3), dt));
  EXPECT_ERROR(internal, "dtau", backward(dz, dz, rows4.slice(0, 1)));
}

}  // namespace
}  // namespace notellm

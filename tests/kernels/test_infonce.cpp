#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "kernels/infonce.h"
#include "kernels/note_vector.h"
#include "tests/kernels/infonce_reference.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"

namespace notellm {
namespace {

using namespace test::infonce;
using test::normal;
using test::view;

Stream stream;

Result run(const Problem& p, float scale) {
  std::vector<float> rows(p.z.begin() + p.first * p.d, p.z.begin() + (p.first + p.rows) * p.d), all = p.z,
                                                                                                log_q = p.log_q;
  auto [begin, columns] = Mask(p);
  const int64_t size = infonce_workspace(Device::cpu, p.rows, p.cols, p.d);
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

void check(const Problem& p, double tolerance = 1e-5) { test::infonce::check(run, p, tolerance); }

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
  std::vector<float> rows = p.z, all = p.z, dz_rows(24, 5.0f), dz_all(24, 7.0f),
                     workspace(infonce_workspace(Device::cpu, 6, 6, 4));
  std::vector<int32_t> begin{0, 1, 2, 3, 4, 5, 6}, columns{0, 1, 2, 3, 4, 5};
  std::vector<double> lse = once.lse, dtau{11.0};
  infonce_backward(stream, view(rows, {6, 4}), 0, view(all, {6, 4}), 2.0f, {}, view(begin, {7}), view(columns, {6}),
                   view(lse, {6}), 1.0f, view(dz_rows, {6, 4}), view(dz_all, {6, 4}), view(dtau, {1}),
                   view(workspace, {infonce_workspace(Device::cpu, 6, 6, 4)}));
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
  std::vector<float> z(8), q(4), out(4), workspace(infonce_workspace(Device::cpu, 4, 4, 2)), odd(6), d_all(8);
  std::vector<double> lse(4), dtau(1);
  std::vector<int32_t> begin{0, 1, 2, 3, 4}, columns{0, 1, 2, 3};
  const Tensor all = view(z, {4, 2}), rows4 = view(out, {4}), l = view(lse, {4}), b = view(begin, {5}),
               m = view(columns, {4});
  const Tensor w = view(workspace, {infonce_workspace(Device::cpu, 4, 4, 2)}), none;
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

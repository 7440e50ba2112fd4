// The joint objective against an independent float64 computation (golden/objective.json of the reference material): the
// contrastive loss over the notes of all ranks, however they are spread, and the token loss, with every gradient.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/note_vector.h"
#include "losses/contrastive.h"
#include "losses/token_loss.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"

namespace notellm {
namespace {

Communicator& alone() {
  static Communicator one = Communicator::self();
  return one;
}

constexpr const char* golden_file = "golden/objective.json";

// f32 rounds a term to 2^-24 = 6e-8 of it. A similarity is a sum of at most 5 such products; times e^tau = 20 it moves
// an exponent by 20 · 5 · 6e-8 = 6e-6 at most, and with it a probability, a gradient, by that share.
constexpr double relative_tolerance = 1e-5;

struct Case {
  std::string name;
  std::vector<int64_t> ids;
  int64_t d;
  float tau;
  double alpha;
  std::vector<float> log_q, vectors, logits;
  std::vector<int32_t> labels;
  int64_t vocabulary;
  bool mask_known;
  nlohmann::json json;

  explicit Case(const nlohmann::json& j)
      : name(j.at("name")),
        ids(j.at("note_ids")),
        d(j.at("d")),
        tau(j.at("tau")),
        alpha(j.at("alpha")),
        vectors(j.at("note_vectors")),
        logits(j.at("logits")),
        labels(j.at("labels")),
        vocabulary(j.at("logits_shape").at(1)),
        mask_known(j.at("mask_known")),
        json(j) {
    if (!j.at("log_q").is_null()) log_q = j.at("log_q").get<std::vector<float>>();
  }
  double number(const char* key) const { return json.at(key); }
};

std::vector<Case> cases() {
  const auto json = nlohmann::json::parse(read_file(test::shared_path(golden_file)));
  std::vector<Case> all;
  for (const auto& j : json.at("cases")) all.emplace_back(j);
  EXPECT_EQ(all.size(), 3u);
  return all;
}

void expect_close(const std::string& what, const float* found, const nlohmann::json& expected, size_t first,
                  size_t count) {
  double scale = 0;
  for (double x : expected) scale = std::max(scale, std::abs(x));
  for (size_t i = 0; i < count; ++i)
    EXPECT_NEAR(found[i], expected.at(first + i).get<double>(), relative_tolerance * scale) << what << " " << first + i;
}

// Rows of each rank: as uneven as pairs allow. The first rank has one pair, the last all that is left.
std::vector<int64_t> uneven(int64_t rows, int ranks) {
  std::vector<int64_t> of(ranks, 2);
  of.back() = rows - 2 * (ranks - 1);
  return of;
}

struct ContrastiveResult {
  ContrastiveSums sums;
  std::vector<float> dv;  // of this rank's rows, before normalisation
  double dtau = 0;
  int64_t first = 0, rows = 0;
};

// d(loss)/d(note vectors), d(loss)/d(tau) of the contrastive part of a case.
ContrastiveResult run_contrastive(const Case& c, Communicator& ranks, ContrastiveGradient gradient) {
  const std::vector<int64_t> rows_of = uneven(static_cast<int64_t>(c.ids.size()), ranks.size());
  ContrastiveResult r;
  r.first = std::accumulate(rows_of.begin(), rows_of.begin() + ranks.rank(), int64_t{0});
  r.rows = rows_of[ranks.rank()];
  Arena arena(16 << 20);
  Stream stream;
  const Tensor z = arena.allocate(DType::f32, {r.rows, c.d}), dz = arena.allocate(DType::f32, {r.rows, c.d});
  const Tensor norm = arena.allocate(DType::f32, {r.rows});
  l2_normalize(stream, Tensor::of(c.vectors.data() + r.first * c.d, {r.rows, c.d}), z, norm);
  Contrastive contrastive(c.mask_known, gradient, ranks.size());
  const double scale = 1 / (1 + c.alpha) / static_cast<double>(c.ids.size());
  const int64_t used = arena.used_bytes();
  contrastive.run(stream, ranks, {c.ids, c.log_q, rows_of}, z, c.tau, scale, dz, arena);
  r.sums = contrastive.sums();
  EXPECT_EQ(arena.used_bytes(), used);
  l2_normalize_backward(stream, dz, z, norm, dz);
  r.dv.assign(dz.as<float>(), dz.as<float>() + dz.size());
  double sums[] = {r.sums.loss, r.sums.positive_similarity, r.sums.negative_similarity, r.sums.dtau};
  ranks.all_reduce_sum("sums", Tensor::of(sums, {4}));
  r.sums = {sums[0], sums[1], sums[2]};
  r.dtau = sums[3];
  return r;
}

TEST(Objective, ContrastiveEqualsFloat64) {
  NOTELLM_NEEDS_SHARED(golden_file);
  Communicator world = Communicator::world();
  for (const Case& c : cases()) {
    const ContrastiveResult r = run_contrastive(c, world, ContrastiveGradient::exact);
    const double expected = c.number("loss_cl");
    EXPECT_NEAR(r.sums.loss / static_cast<double>(c.ids.size()), expected, relative_tolerance * expected) << c.name;
    EXPECT_NEAR(r.dtau, c.number("grad_tau"), relative_tolerance * std::abs(c.number("grad_tau"))) << c.name;
    expect_close(c.name + " grad_note_vectors", r.dv.data(), c.json.at("grad_note_vectors"), r.first * c.d,
                 r.rows * c.d);
  }
}

// The mean cosines of the log, in double.
TEST(Objective, MeanSimilarities) {
  NOTELLM_NEEDS_SHARED(golden_file);
  Communicator world = Communicator::world();
  for (const Case& c : cases()) {
    const size_t n = c.ids.size();
    std::vector<std::vector<char>> masked(n, std::vector<char>(n, 0));
    for (const auto& pair : c.json.at("masked_pairs")) masked[pair.at(0)][pair.at(1)] = 1;
    const auto dot = [&](size_t i, size_t j) {
      return std::inner_product(&c.vectors[i * c.d], &c.vectors[i * c.d] + c.d, &c.vectors[j * c.d], 0.0);
    };
    double positive = 0, negative = 0;
    for (size_t i = 0; i < n; ++i) {
      double sum = 0;
      int count = 0;
      for (size_t j = 0; j < n; ++j) {
        const double cosine = dot(i, j) / std::sqrt(dot(i, i) * dot(j, j));
        if (j == (i ^ 1)) positive += cosine;
        if (j == i || j == (i ^ 1) || masked[i][j]) continue;
        sum += cosine;
        ++count;
      }
      negative += sum / count;
    }
    const ContrastiveResult r = run_contrastive(c, world, ContrastiveGradient::exact);
    EXPECT_NEAR(r.sums.positive_similarity, positive, 1e-5) << c.name;
    EXPECT_NEAR(r.sums.negative_similarity, negative, 1e-5) << c.name;
  }
}

TEST(Objective, ReleasedCodeIsTheSameButForTheRanks) {
  NOTELLM_NEEDS_SHARED(golden_file);
  Communicator world = Communicator::world();
  for (const Case& c : cases()) {
    const ContrastiveResult exact = run_contrastive(c, world, ContrastiveGradient::exact);
    const ContrastiveResult released = run_contrastive(c, world, ContrastiveGradient::released_code);
    EXPECT_EQ(released.sums.loss, exact.sums.loss) << c.name;
    EXPECT_EQ(released.dtau, exact.dtau) << c.name;
    for (size_t i = 0; i < exact.dv.size(); ++i)
      EXPECT_NEAR(released.dv[i], exact.dv[i] / world.size(), 1e-6 * std::abs(exact.dv[i])) << c.name;
  }
}

// The mask that training builds leaves out what the golden case names, and itself.
TEST(Objective, MaskedPairs) {
  NOTELLM_NEEDS_SHARED(golden_file);
  for (const Case& c : cases()) {
    const auto n = static_cast<int64_t>(c.ids.size());
    std::vector<std::pair<int, int>> expected, found;
    for (int i = 0; i < n; ++i) expected.emplace_back(i, i);
    for (const auto& pair : c.json.at("masked_pairs")) expected.emplace_back(pair.at(0), pair.at(1));
    std::sort(expected.begin(), expected.end());
    ContrastiveMask mask;
    mask.build(c.ids, 0, n, c.mask_known);
    const int32_t *begin = mask.begin().as<int32_t>(), *columns = mask.columns().as<int32_t>();
    for (int i = 0; i < n; ++i)
      for (int32_t k = begin[i]; k < begin[i + 1]; ++k) found.emplace_back(i, columns[k]);
    EXPECT_EQ(found, expected) << c.name;
  }
}

// The head is the identity, so that the hidden states of the label rows are the logits and their gradient the logits'.
// Hidden rows stand in another order than labels, with one that no label reads between them; the head has a row of
// padding beyond the vocabulary in use, whose logit would be the largest.
TEST(Objective, TokenLossEqualsFloat64) {
  NOTELLM_NEEDS_SHARED(golden_file);
  Stream stream;
  for (const Case& c : cases()) {
    const auto m = static_cast<int64_t>(c.labels.size()), v = c.vocabulary;
    Arena arena(16 << 20);
    const Tensor hidden = arena.allocate(DType::f32, {m + 1, v + 1}),
                 d_hidden = arena.allocate(DType::f32, {m + 1, v + 1});
    const Tensor head = arena.allocate(DType::f32, {v + 1, v + 1}), d_head = arena.allocate(DType::f32, {v + 1, v + 1});
    std::fill_n(hidden.as<float>(), hidden.size(), 50.0f);
    for (const Tensor& t : {d_hidden, head, d_head}) std::fill_n(t.as<float>(), t.size(), 0.0f);
    for (int64_t i = 0; i <= v; ++i) head.as<float>()[i * (v + 1) + i] = 1;
    std::vector<int32_t> places;
    for (int64_t r = 0; r < m; ++r) {
      places.push_back(static_cast<int32_t>(m - r - (r >= m / 2)));
      std::copy_n(&c.logits[r * v], v, hidden.as<float>() + places[r] * (v + 1));
    }
    const int64_t used = arena.used_bytes();
    const double scale = c.alpha / (1 + c.alpha) / static_cast<double>(m);
    std::vector<float> loss(m);
    token_loss(stream, alone(), hidden, Tensor::of(places.data(), {m}), Tensor::of(c.labels.data(), {m}), head, v,
               scale, d_hidden, d_head, Tensor::of(loss.data(), {m}), arena);
    const double sum = std::accumulate(loss.begin(), loss.end(), 0.0);
    EXPECT_EQ(arena.used_bytes(), used);
    EXPECT_NEAR(sum / static_cast<double>(m), c.number("loss_gen"), relative_tolerance * c.number("loss_gen"))
        << c.name;
    for (int64_t r = 0; r < m; ++r) {
      const float* row = d_hidden.as<float>() + places[r] * (v + 1);
      expect_close(c.name + " grad_logits", row, c.json.at("grad_logits"), r * v, v);
      EXPECT_EQ(row[v], 0.0f) << c.name;
    }
    // d_head = Σ_r (gradient of r's logits) ⊗ (hidden of r)
    for (int64_t i = 0; i < v; ++i)
      for (int64_t j = 0; j < v; ++j) {
        double expected = 0, size = 0;
        for (int64_t r = 0; r < m; ++r) {
          const double term = c.json.at("grad_logits").at(r * v + i).get<double>() * c.logits[r * v + j];
          expected += term;
          size += std::abs(term);
        }
        EXPECT_NEAR(d_head.as<float>()[i * (v + 1) + j], expected, relative_tolerance * size + 1e-9) << c.name;
      }
  }
}

// More label rows than a tile of logits: the sum, and the gradients, of all tiles.
TEST(TokenLoss, MoreRowsThanATile) {
  Stream stream;
  Arena arena(64 << 20);
  const int64_t rows = 1100, dim = 3, vocabulary = 5;
  const Tensor hidden = arena.allocate(DType::f32, {rows, dim}), head = arena.allocate(DType::f32, {vocabulary, dim});
  const Tensor d_hidden = arena.allocate(DType::f32, {rows, dim}),
               d_head = arena.allocate(DType::f32, {vocabulary, dim});
  std::vector<int32_t> places(rows), labels(rows);
  std::iota(places.begin(), places.end(), 0);
  for (int64_t i = 0; i < hidden.size(); ++i) hidden.as<float>()[i] = static_cast<float>(std::sin(1.7 * i));
  for (int64_t i = 0; i < head.size(); ++i) head.as<float>()[i] = static_cast<float>(std::cos(2.3 * i));
  for (int64_t r = 0; r < rows; ++r) labels[r] = static_cast<int32_t>(r % vocabulary);
  for (const Tensor& t : {d_hidden, d_head}) std::fill_n(t.as<float>(), t.size(), 0.0f);
  std::vector<float> loss(rows);
  token_loss(stream, alone(), hidden, Tensor::of(places.data(), {rows}), Tensor::of(labels.data(), {rows}), head,
             vocabulary, 0.5, d_hidden, d_head, Tensor::of(loss.data(), {rows}), arena);
  const double sum = std::accumulate(loss.begin(), loss.end(), 0.0);
  double expected = 0;
  std::vector<double> expected_head(vocabulary * dim);
  for (int64_t r = 0; r < rows; ++r) {
    double total = 0, logit[vocabulary], d[dim] = {};
    for (int64_t v = 0; v < vocabulary; ++v) {
      logit[v] = 0;
      for (int64_t i = 0; i < dim; ++i)
        logit[v] += double(hidden.as<float>()[r * dim + i]) * head.as<float>()[v * dim + i];
      total += std::exp(logit[v]);
    }
    expected += std::log(total) - logit[labels[r]];
    for (int64_t v = 0; v < vocabulary; ++v) {
      const double g = 0.5 * (std::exp(logit[v]) / total - (v == labels[r]));
      for (int64_t i = 0; i < dim; ++i) {
        d[i] += g * head.as<float>()[v * dim + i];
        expected_head[v * dim + i] += g * hidden.as<float>()[r * dim + i];
      }
    }
    for (int64_t i = 0; i < dim; ++i) ASSERT_NEAR(d_hidden.as<float>()[r * dim + i], d[i], 1e-6) << r;
  }
  EXPECT_NEAR(sum, expected, 1e-6 * expected);
  // 1,100 terms below 1 in f32: sqrt(1100) · 2^-24 each way, and the tiles' sums
  for (int64_t i = 0; i < vocabulary * dim; ++i) EXPECT_NEAR(d_head.as<float>()[i], expected_head[i], 1e-4);
}

TEST(TokenLoss, RefusesALabelOfThePadding) {
  Stream stream;
  Arena arena(1 << 20);
  const Tensor hidden = arena.allocate(DType::f32, {1, 2}), head = arena.allocate(DType::f32, {4, 2});
  std::fill_n(hidden.as<float>(), 2, 0.0f);
  std::fill_n(head.as<float>(), 8, 0.0f);
  const std::vector<int32_t> place = {0}, label = {3};
  EXPECT_ERROR(internal, "3",
               token_loss(stream, alone(), hidden, Tensor::of(place.data(), {1}), Tensor::of(label.data(), {1}), head,
                          3, 1, arena.allocate(DType::f32, {1, 2}), arena.allocate(DType::f32, {4, 2}),
                          arena.allocate(DType::f32, {1}), arena));
}

TEST(Contrastive, RefusesRowsThatAreNotItsOwn) {
  Communicator self = Communicator::self();
  Stream stream;
  Arena arena(1 << 20);
  const Tensor z = arena.allocate(DType::f32, {4, 2}), dz = arena.allocate(DType::f32, {4, 2});
  Contrastive contrastive(true, ContrastiveGradient::exact, 1);
  const std::vector<int64_t> ids = {1, 2}, odd = {1, 2, 3, 4, 5}, two = {2}, four = {4};
  EXPECT_ERROR(internal, "4 of 2 note vectors", contrastive.run(stream, self, {ids, {}, two}, z, 3, 1, dz, arena));
  EXPECT_ERROR(internal, "5", contrastive.run(stream, self, {odd, {}, four}, z, 3, 1, dz, arena));
}

}  // namespace
}  // namespace notellm

#include "kernels/sample.h"

#include <array>
#include <bit>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

constexpr int64_t most_columns =
    1 << 20;  // 2^20 weights of at most 2^32 are summed exactly in 64 bits, and in a double

void expect_rows(const Tensor& logits, const Candidates& candidates, const Tensor& token) {
  const int64_t rows = logits.rows(), columns = candidates.columns;
  expect("logits", logits, DType::f32, rows, logits.cols());
  NOTELLM_CHECK(0 < columns && columns <= logits.cols() && columns <= most_columns,
                "{} columns may be chosen of {}, at most {}", columns, logits.cols(), most_columns);
  expect("token", token, DType::i32, rows);
  if (candidates.offsets.empty()) return;
  expect("offsets", candidates.offsets, DType::i32, rows + 1);
  expect("tokens", candidates.tokens, DType::i32, candidates.tokens.rows());
}

void expect_candidates(const Candidates& candidates) {
  if (candidates.offsets.empty()) return;
  const int64_t rows = candidates.offsets.rows() - 1, n = candidates.tokens.rows();
  const int32_t *offsets = candidates.offsets.as<int32_t>(), *tokens = candidates.tokens.as<int32_t>();
  for (int64_t r = 0; r < rows; ++r)
    NOTELLM_CHECK(offsets[r] <= offsets[r + 1], "offset {} of row {}, then {}", offsets[r], r, offsets[r + 1]);
  NOTELLM_CHECK(offsets[0] == 0 && offsets[rows] == n, "offsets from {} to {} of {} candidates", offsets[0],
                offsets[rows], n);
  for (int64_t c = 0; c < n; ++c)
    NOTELLM_CHECK(tokens[c] >= 0 && tokens[c] < candidates.columns, "candidate {} of {} columns", tokens[c],
                  candidates.columns);
}

// What one row may choose from.
struct Row {
  const float* logits;
  const int32_t* tokens;  // null: all columns
  int64_t count;

  Row(const Tensor& all, const Candidates& candidates, int64_t r) : logits(all.as<float>() + r * all.cols()) {
    if (candidates.offsets.empty()) {
      tokens = nullptr;
      count = candidates.columns;
    } else {
      const int32_t* offsets = candidates.offsets.as<int32_t>() + r;
      tokens = candidates.tokens.as<int32_t>() + offsets[0];
      count = offsets[1] - offsets[0];
    }
  }
  int32_t token(int64_t c) const { return tokens ? tokens[c] : static_cast<int32_t>(c); }
  float logit(int64_t c) const { return logits[token(c)]; }
};

// The place of the first of the largest logits, of the first NaN if there is one; −1: none.
int64_t largest_of(const Row& row) {
  int64_t best = -1;
  for (int64_t c = 0; c < row.count; ++c) {
    const float x = row.logit(c);
    if (std::isnan(x)) return c;
    if (best < 0 || x > row.logit(best)) best = c;
  }
  return best;
}

// Larger for larger numbers; the same for both zeros.
uint32_t key_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The largest key such that the candidates from it on have together at least `needed` of weight(logit), digit by digit
// of the key. Those below `least` do not count; the others have enough.
template <class Weight>
uint32_t threshold(const Row& row, uint32_t least, uint64_t needed, const Weight& weight) {
  uint32_t found = 0;
  uint64_t above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::array<uint64_t, 256> of_digit{};
    for (int64_t c = 0; c < row.count; ++c) {
      const uint32_t key = key_of(row.logit(c));
      if (key >= least && (uint64_t{key} >> (shift + 8)) == found) of_digit[key >> shift & 255] += weight(row.logit(c));
    }
    uint32_t digit = 255;
    while (above + of_digit[digit] < needed) above += of_digit[digit--];
    found = found << 8 | digit;
  }
  return found;
}

int32_t sample_row(const Row& row, const Sampling& sampling, float uniform) {
  const int64_t best = largest_of(row);
  if (best < 0 || !std::isfinite(row.logit(best))) return -1;
  const float top = row.logit(best);
  const auto weight = [&](float x) {
    return static_cast<uint64_t>(exp_or_zero((x - top) / sampling.temperature) * 0x1p32f);
  };
  uint32_t least = 0;
  const auto kept_weight = [&] {
    uint64_t sum = 0;
    for (int64_t c = 0; c < row.count; ++c)
      if (key_of(row.logit(c)) >= least) sum += weight(row.logit(c));
    return static_cast<double>(sum);
  };
  if (sampling.top_k > 0 && sampling.top_k < row.count)
    least = threshold(row, least, static_cast<uint64_t>(sampling.top_k), [](float) { return uint64_t{1}; });
  if (sampling.top_p < 1)
    least = threshold(row, least, static_cast<uint64_t>(std::ceil(sampling.top_p * kept_weight())), weight);
  const auto wanted = static_cast<uint64_t>(uniform * kept_weight());
  uint64_t sum = 0;
  for (int64_t c = 0;; ++c) {
    if (key_of(row.logit(c)) >= least) sum += weight(row.logit(c));
    if (sum > wanted) return row.token(c);
  }
}

}  // namespace

void argmax(Stream& stream, Tensor logits, const Candidates& candidates, Tensor token, Tensor largest) {
  expect_rows(logits, candidates, token);
  expect("largest", largest, DType::f32, logits.rows());
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::argmax(stream, logits, candidates, token, largest);
  expect_candidates(candidates);
#pragma omp parallel for schedule(static) if (logits.rows() * candidates.columns > parallel_elements)
  for (int64_t r = 0; r < logits.rows(); ++r) {
    const Row row(logits, candidates, r);
    const int64_t best = largest_of(row);
    const float value = best < 0 ? std::nanf("") : row.logit(best);
    token.as<int32_t>()[r] = std::isfinite(value) ? row.token(best) : -1;
    largest.as<float>()[r] = value;
  }
}

void sample(Stream& stream, Tensor logits, const Candidates& candidates, const Sampling& sampling, Tensor uniform,
            Tensor token) {
  expect_rows(logits, candidates, token);
  NOTELLM_CHECK(sampling.temperature > 0, "temperature {}, but it must be above 0", sampling.temperature);
  NOTELLM_CHECK(sampling.top_k >= 0, "top_k {}, but it must be at least 0", sampling.top_k);
  NOTELLM_CHECK(sampling.top_p > 0 && sampling.top_p <= 1, "top_p {}, but it must be above 0 and at most 1",
                sampling.top_p);
  expect("uniform", uniform, DType::f32, logits.rows());
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::sample(stream, logits, candidates, sampling, uniform, token);
  expect_candidates(candidates);
#pragma omp parallel for schedule(static) if (logits.rows() * candidates.columns > parallel_elements)
  for (int64_t r = 0; r < logits.rows(); ++r)
    token.as<int32_t>()[r] = sample_row(Row(logits, candidates, r), sampling, uniform.as<float>()[r]);
}

}  // namespace notellm

// Rows of logits, with ties, NaN and infinities, and which token a plain computation in double may choose: for both
// devices.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/sample.h"
#include "tests/kernels/op_support.h"

namespace notellm::test {

struct SampleCase {
  int64_t rows, vocabulary, columns;
  bool lists;
  std::vector<float> logits;
  std::vector<int32_t> offsets, tokens;  // with lists

  std::string name() const {
    return std::to_string(rows) + " rows, " + std::to_string(columns) + " of " + std::to_string(vocabulary) +
           " columns" + (lists ? ", lists" : "");
  }
  std::vector<int32_t> candidates(int64_t r) const {
    std::vector<int32_t> result;
    if (lists)
      result.assign(tokens.begin() + offsets[r], tokens.begin() + offsets[r + 1]);
    else
      for (int32_t v = 0; v < columns; ++v) result.push_back(v);
    return result;
  }
  float logit(int64_t r, int32_t v) const { return logits[r * vocabulary + v]; }
  // The place of the first of the largest logits or of the first NaN; -1: none.
  int32_t best(int64_t r) const {
    int32_t best = -1;
    for (int32_t v : candidates(r)) {
      if (std::isnan(logit(r, v))) return v;
      if (best < 0 || logit(r, v) > logit(r, best)) best = v;
    }
    return best;
  }
  int32_t expected_argmax(int64_t r) const {
    const int32_t v = best(r);
    return v >= 0 && std::isfinite(logit(r, v)) ? v : -1;
  }
};

inline std::vector<SampleCase> sample_cases() {
  std::vector<SampleCase> cases;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto& [rows, vocabulary, columns] :
       {std::array<int64_t, 3>{1, 1, 1}, {3, 40, 33}, {2, 1024, 1024}, {5, 3000, 2999}, {2, 70, 64}})
    for (bool lists : {false, true}) {
      SampleCase c{rows, vocabulary, columns, lists, normal(rows * vocabulary, 1, 3.0f), {}, {}};
      if (vocabulary == 70)  // many ties, of both zeros too
        for (float& x : c.logits) x = std::copysign(std::floor(std::fabs(x)), x);
      if (rows == 5) {
        c.logits[1 * vocabulary + 7] = std::nanf("");
        c.logits[2 * vocabulary + 9] = -std::nanf("");
        c.logits[3 * vocabulary + 5] = infinity;
        for (int64_t v = 0; v < vocabulary; ++v)  // all but three
          if (v != 4 && v != 2000 && v != 2998) c.logits[4 * vocabulary + v] = -infinity;
      }
      for (int64_t r = 0; r < rows; ++r)  // behind the columns that may be chosen
        for (int64_t v = columns; v < vocabulary; ++v) c.logits[r * vocabulary + v] = 100;
      if (lists) {
        c.offsets.push_back(0);
        for (int64_t r = 0; r < rows; ++r) {
          for (int32_t v = 0; v < columns; ++v)
            if ((v * 7 + r) % 3 != 1 && !(rows == 3 && r == 1)) c.tokens.push_back(v);  // one list is empty
          c.offsets.push_back(static_cast<int32_t>(std::ssize(c.tokens)));
        }
      }
      cases.push_back(std::move(c));
    }
  return cases;
}

inline std::vector<Sampling> samplings() {
  return {{},
          {.temperature = 0.5f},
          {.top_k = 1},
          {.top_k = 5},
          {.temperature = 2, .top_k = 40, .top_p = 0.8f},
          {.top_p = 0.3f},
          {.temperature = 1e-30f}};
}

// Checks a drawn token against the definition, in double. The op's weights are cut to multiples of 2^-32 of the largest
// and their exponential is wrong by at most 4 roundings beside that of its argument, whose size (below 23, else the
// weight is 0) multiplies it: (4 + 23 · 2) · 2^-24 of a weight. A running sum is off by as much of the whole, and by
// 2^-32 for each candidate.
inline void expect_drawn(const SampleCase& c, int64_t r, const Sampling& s, float uniform, int32_t token) {
  SCOPED_TRACE(fmt::format("temperature {}, top_k {}, top_p {}", s.temperature, s.top_k, s.top_p));
  if (c.expected_argmax(r) < 0) {
    EXPECT_EQ(token, -1) << "row " << r;
    return;
  }
  const double top = c.logit(r, c.best(r));
  std::vector<int32_t> by_size = c.candidates(r);
  const auto weight = [&](int32_t v) { return std::exp((c.logit(r, v) - top) / s.temperature); };
  const auto cut_below = [&](int64_t last) {  // the last that is kept, and those that equal it
    const float least = c.logit(r, by_size[last]);
    std::erase_if(by_size, [&](int32_t v) { return c.logit(r, v) < least; });
  };
  std::ranges::stable_sort(by_size, [&](int32_t a, int32_t b) { return c.logit(r, a) > c.logit(r, b); });
  const auto sum = [&] {
    double all = 0;
    for (int32_t v : by_size) all += weight(v);
    return all;
  };
  const double off = 50 * 0x1p-24 + 0x1p-32 * static_cast<double>(by_size.size());
  if (s.top_k > 0 && s.top_k < std::ssize(by_size)) cut_below(s.top_k - 1);
  if (s.top_p < 1) {
    const double needed = double{s.top_p} * sum();
    double before = 0;
    int64_t last = 0;
    for (;; ++last) {
      const double with = before + weight(by_size[last]);
      // No case may hang on a rounding; equal logits are kept together and do not.
      const bool in_ties = last + 1 < std::ssize(by_size) && c.logit(r, by_size[last]) == c.logit(r, by_size[last + 1]);
      if (!in_ties) {
        ASSERT_GT(std::fabs(with - needed), 2 * off * sum()) << "another seed is needed";
      }
      if (with >= needed) break;
      before = with;
    }
    cut_below(last);
  }
  std::ranges::sort(by_size);
  const double all = sum();
  double before = 0;
  for (int32_t v : by_size) {
    const double after = before + weight(v);
    if (v == token) {
      EXPECT_TRUE(uniform >= before / all - off && uniform <= after / all + off)
          << "row " << r << ": " << uniform << " in " << before / all << " to " << after / all;
      return;
    }
    before = after;
  }
  FAIL() << "row " << r << ": token " << token << " is not kept";
}

}  // namespace notellm::test

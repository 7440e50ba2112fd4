#include "evaluation/text_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "runtime/error.h"

namespace notellm {
namespace {

void expect_as_many(size_t candidates, size_t references) {
  NOTELLM_CHECK(candidates == references, "{} candidates for {} references", candidates, references);
}

using Ngrams = std::map<std::vector<std::string>, int64_t>;

Ngrams ngrams_of(const Words& words, size_t n) {
  Ngrams counts;
  for (size_t i = 0; i + n <= words.size(); ++i)
    ++counts[std::vector<std::string>(words.begin() + static_cast<int64_t>(i),
                                      words.begin() + static_cast<int64_t>(i + n))];
  return counts;
}

int64_t count_of(const Words& words, size_t n) {
  return words.size() < n ? 0 : static_cast<int64_t>(words.size() - n + 1);
}

// How many n-grams two texts have in common, each as often as in the one that has it less often.
int64_t matches_of(const Words& candidate, const Words& reference, size_t n) {
  const Ngrams wanted = ngrams_of(reference, n);
  int64_t matches = 0;
  for (const auto& [ngram, count] : ngrams_of(candidate, n))
    if (const auto found = wanted.find(ngram); found != wanted.end()) matches += std::min(count, found->second);
  return matches;
}

double f1_of(double matches, double candidate, double reference) {
  return matches == 0 ? 0 : 2 * matches / (candidate + reference);
}

int64_t longest_common_subsequence(const Words& a, const Words& b) {
  std::vector<int64_t> row(b.size() + 1, 0);
  for (const std::string& word : a) {
    int64_t diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const int64_t above = row[j + 1];
      row[j + 1] = word == b[j] ? diagonal + 1 : std::max(above, row[j]);
      diagonal = above;
    }
  }
  return row.back();
}

double mean(double sum, size_t count) {
  return count == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(count);
}

}  // namespace

double bleu(std::span<const std::string> candidates, std::span<const std::string> references, TextWords kind) {
  expect_as_many(candidates.size(), references.size());
  std::array<int64_t, 4> matches{}, totals{};
  int64_t candidate_words = 0, reference_words = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Words candidate = bleu_words(candidates[i], kind), reference = bleu_words(references[i], kind);
    candidate_words += std::ssize(candidate);
    reference_words += std::ssize(reference);
    for (size_t n = 1; n <= 4; ++n) {
      matches[n - 1] += matches_of(candidate, reference, n);
      totals[n - 1] += count_of(candidate, n);
    }
  }
  if (matches[0] == 0 || totals[3] == 0) return 0;
  double logs = 0, smoothing = 1;
  for (size_t n = 0; n < 4; ++n) {
    if (matches[n] == 0) smoothing *= 2;
    const double share = matches[n] == 0 ? 1 / smoothing : static_cast<double>(matches[n]);
    logs += std::log(share / static_cast<double>(totals[n]));
  }
  const double c = static_cast<double>(candidate_words), r = static_cast<double>(reference_words);
  return std::min(1.0, std::exp(1 - r / c)) * std::exp(logs / 4);
}

Rouge rouge(std::span<const std::string> candidates, std::span<const std::string> references, TextWords kind) {
  expect_as_many(candidates.size(), references.size());
  Rouge sums{};
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Words candidate = rouge_words(candidates[i], kind), reference = rouge_words(references[i], kind);
    const auto of_ngrams = [&](size_t n) {
      return f1_of(static_cast<double>(matches_of(candidate, reference, n)),
                   static_cast<double>(count_of(candidate, n)), static_cast<double>(count_of(reference, n)));
    };
    sums.rouge_1 += of_ngrams(1);
    sums.rouge_2 += of_ngrams(2);
    sums.rouge_l += f1_of(static_cast<double>(longest_common_subsequence(candidate, reference)),
                          static_cast<double>(candidate.size()), static_cast<double>(reference.size()));
  }
  const size_t n = candidates.size();
  return {mean(sums.rouge_1, n), mean(sums.rouge_2, n), mean(sums.rouge_l, n)};
}

SetScores set_scores(std::span<const Words> candidates, std::span<const Words> references) {
  expect_as_many(candidates.size(), references.size());
  int64_t both = 0, generated = 0, wanted = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const std::set<std::string> candidate(candidates[i].begin(), candidates[i].end()),
        reference(references[i].begin(), references[i].end());
    generated += std::ssize(candidate);
    wanted += std::ssize(reference);
    both += std::ranges::count_if(candidate, [&](const std::string& word) { return reference.contains(word); });
  }
  const auto share = [&](int64_t of) { return of == 0 ? 0 : static_cast<double>(both) / static_cast<double>(of); };
  return {share(generated), share(wanted),
          f1_of(static_cast<double>(both), static_cast<double>(generated), static_cast<double>(wanted))};
}

CategoryScores category_scores(std::span<const std::string> candidates, std::span<const std::string> references,
                               std::span<const std::string> allowed) {
  expect_as_many(candidates.size(), references.size());
  const std::set<std::string> closed(allowed.begin(), allowed.end());
  double right = 0, illusory = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    right += candidates[i] == references[i];
    illusory += !closed.contains(candidates[i]);
  }
  return {mean(right, candidates.size()), mean(illusory, candidates.size())};
}

}  // namespace notellm

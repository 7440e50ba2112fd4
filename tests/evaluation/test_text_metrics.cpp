#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "evaluation/text_metrics.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using Texts = std::vector<std::string>;

TextWords kind_of(const std::string& name) { return name == "chinese" ? TextWords::chinese : TextWords::international; }

// Sums of at most some hundred doubles, logarithms and a root: some 1e-14.
constexpr double tolerance = 1e-12;

TEST(TextMetrics, AreThoseOfSacrebleuAndRougeScore) {
  const auto golden = nlohmann::json::parse(
      read_file(std::filesystem::path(NOTELLM_SOURCE_DIR) / "tests/golden/text_metrics/golden.json"));
  ASSERT_EQ(golden.size(), 16u);
  int nonzero = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    const auto& c = golden[i];
    SCOPED_TRACE(i);
    const TextWords kind = kind_of(c.at("kind"));
    const Texts candidates = c.at("candidates"), references = c.at("references");
    const std::vector<Words> words = c.at("words");
    for (size_t t = 0; t < words.size(); ++t) EXPECT_EQ(bleu_words(candidates[t], kind), words[t]) << candidates[t];
    EXPECT_NEAR(bleu(candidates, references, kind), c.at("bleu").get<double>(), tolerance);
    const Rouge r = rouge(candidates, references, kind);
    EXPECT_NEAR(r.rouge_1, c.at("rouge")[0].get<double>(), tolerance);
    EXPECT_NEAR(r.rouge_2, c.at("rouge")[1].get<double>(), tolerance);
    EXPECT_NEAR(r.rouge_l, c.at("rouge")[2].get<double>(), tolerance);
    nonzero += c.at("bleu") > 0;
  }
  EXPECT_GE(nonzero, 8);
}

TEST(TextMetrics, BleuByHand) {
  const Texts reference{"a b c d e"};
  EXPECT_DOUBLE_EQ(bleu(reference, reference, TextWords::international), 1);
  // Half of the words: all n-grams match, and e^(1 − 8/4).
  EXPECT_DOUBLE_EQ(bleu(Texts{"a b c d"}, Texts{"a b c d e f g h"}, TextWords::international), std::exp(-1));
  // 4 of 4, 2 of 3, 1 of 2; no 4-gram of 1: half a match.
  EXPECT_DOUBLE_EQ(bleu(Texts{"a b c e"}, Texts{"a b c x e"}, TextWords::international),
                   std::exp(1 - 5.0 / 4) * std::pow(1.0 * 2 / 3 * 1 / 2 * 1 / 2, 0.25));
  EXPECT_EQ(bleu(Texts{"a b c"}, Texts{"a b c"}, TextWords::international), 0);  // no 4-gram
  EXPECT_EQ(bleu(Texts{""}, reference, TextWords::international), 0);
  EXPECT_EQ(bleu({}, {}, TextWords::international), 0);
}

TEST(TextMetrics, RougeByHand) {
  const Rouge r = rouge(Texts{"The cat sat.", "x"}, Texts{"a cat that sat", "y"}, TextWords::international);
  EXPECT_DOUBLE_EQ(r.rouge_1, 2 * 2 / 7.0 / 2);
  EXPECT_DOUBLE_EQ(r.rouge_2, 0);
  EXPECT_DOUBLE_EQ(r.rouge_l, 2 * 2 / 7.0 / 2);
  EXPECT_TRUE(std::isnan(rouge({}, {}, TextWords::international).rouge_1));
  EXPECT_EQ(rouge_words("K2 İx", TextWords::international), (Words{"k2", "i", "x"}));
}

TEST(TextMetrics, SetsByHand) {
  const SetScores s =
      set_scores(std::vector<Words>{{"a", "b", "a"}, {"c"}, {}}, std::vector<Words>{{"b", "x", "y"}, {"c"}, {"z"}});
  EXPECT_DOUBLE_EQ(s.precision, 2.0 / 3);
  EXPECT_DOUBLE_EQ(s.recall, 2.0 / 5);
  EXPECT_DOUBLE_EQ(s.f1, 0.5);
  EXPECT_EQ(set_scores({}, {}).f1, 0);
}

TEST(TextMetrics, CategoriesByHand) {
  const Texts allowed{"a", "b"};
  const CategoryScores s = category_scores(Texts{"a", "b", "c", "A"}, Texts{"a", "a", "b", "a"}, allowed);
  EXPECT_DOUBLE_EQ(s.accuracy, 0.25);
  EXPECT_DOUBLE_EQ(s.illusory, 0.5);
  EXPECT_TRUE(std::isnan(category_scores({}, {}, allowed).accuracy));
}

TEST(TextMetrics, Errors) {
  const Texts one{"a"}, none;
  EXPECT_ERROR(internal, "1 candidates for 0 references", bleu(one, none, TextWords::chinese));
  EXPECT_ERROR(internal, "0 candidates for 1 references", rouge(none, one, TextWords::chinese));
  EXPECT_ERROR(internal, "1 candidates for 0 references", set_scores(std::vector<Words>{{}}, {}));
  EXPECT_ERROR(internal, "1 candidates for 0 references", category_scores(one, none, one));
}

}  // namespace
}  // namespace notellm

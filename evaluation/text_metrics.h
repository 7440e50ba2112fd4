// How near generated texts come to the wanted ones: BLEU, ROUGE, sets of hashtags, categories out of a closed set.
//
// The numbers are those of sacrebleu (its defaults) and of rouge-score (use_stemmer=False) for the same strings; tests
// hold them against golden values of both. All are shares of 1, what sacrebleu prints is 100 times that. Texts are
// UTF-8. Throw Error: not as many candidates as references.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace notellm {

// How a text becomes words.
//   international  sacrebleu's 13a for BLEU; rouge-score's default for ROUGE: runs of a–z and 0–9, lower-cased
//   chinese        sacrebleu's zh for both: each Chinese character is a word. (rouge-score's default would leave
//   nothing
//                  of a Chinese text; it takes other tokenizers.)
enum class TextWords { international, chinese };

using Words = std::vector<std::string>;
Words bleu_words(std::string_view text, TextWords kind);
Words rouge_words(std::string_view text, TextWords kind);

// Corpus BLEU with n-grams up to 4, one reference a text (Papineni et al. 2002), as sacrebleu computes it:
//   min(1, e^(1 − r/c)) · (p_1·p_2·p_3·p_4)^(1/4),   c, r = words of all candidates, of all references
//   p_n = Σ matches / Σ n-grams of the candidates; the k-th of the p_n without a match counts as 1 / (2^k · n-grams)
// 0 where nothing matches, or no candidate has 4 words.
double bleu(std::span<const std::string> candidates, std::span<const std::string> references, TextWords kind);

// F1 of n-grams (1, 2) and of the longest common subsequence, the mean over the texts (Lin 2004). NaN without a text.
struct Rouge {
  double rouge_1, rouge_2, rouge_l;
};
Rouge rouge(std::span<const std::string> candidates, std::span<const std::string> references, TextWords kind);

// Of all sets together: precision = Σ |candidate ∩ reference| / Σ |candidate|, recall the same over Σ |reference|;
// f1 = 2·precision·recall / (precision + recall). What stands twice in a list counts once. 0 for 0 / 0.
struct SetScores {
  double precision, recall, f1;
};
SetScores set_scores(std::span<const Words> candidates, std::span<const Words> references);

// accuracy: share of candidates equal to their reference; illusory: share that is not in `allowed`. NaN without a text.
struct CategoryScores {
  double accuracy, illusory;
};
CategoryScores category_scores(std::span<const std::string> candidates, std::span<const std::string> references,
                               std::span<const std::string> allowed);

}  // namespace notellm

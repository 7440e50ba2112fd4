// The regular expressions of tokenizer.json files, by PCRE2.
//
// The files mean Oniguruma's syntax. Taken is what both libraries understand alike, and what the tokenizers of GPT-2,
// Llama 3, Qwen2 and their like are written in: characters, \s \S \d \r \n \t, \p{…} and \P{…} of general categories,
// classes of these with ranges, groups, (?i:…) of ASCII characters, (?=…) (?!…), alternatives, ? * + also lazy and
// possessive, {n} {n,} {n,m}. \s is Unicode's White_Space.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;

namespace notellm {

class SplitRegex {
 public:
  // Throws Error(data), whose message begins with `where`: anything else in the pattern, or one that can match nothing.
  SplitRegex(const std::string& pattern, const std::string& where);
  // Matches this text alone. It must not be empty.
  static SplitRegex literal(const std::string& text);

  struct Match {
    size_t begin, end;
  };
  // The first match at or after `from`, never empty. `text` is valid UTF-8. Thread-safe. Throws Error(data) when
  // PCRE2 gives up (its limit of steps or of memory).
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  SplitRegex() = default;
  void compile(const std::string& pattern, uint32_t options, const std::string& where);
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace notellm

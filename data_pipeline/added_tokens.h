// The added tokens of a tokenizer.json that are found in texts before the text is split.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace notellm {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no letter, digit or underscore touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // found in the normalised text, else in the original
  bool special = false;
};

// Finds tokens as the `tokenizers` library does with encode_special_tokens: from left to right the longest that begins
// at a place. Special ones are found too, so that they hide what overlaps them, but they stay text.
class AddedTokenFinder {
 public:
  // `tokens` with what is to be looked for as content.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Calls part(begin, end, id) for each piece of `text` in order; id −1: text that is not empty.
  using Part = std::function<void(size_t, size_t, int32_t)>;
  void split(std::string_view text, const Part& part) const;
  // No token is ever cut out.
  bool finds_none() const { return finds_none_; }

 private:
  const AddedToken* longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::array<std::vector<size_t>, 256> by_first_byte_;  // longest first
  bool finds_none_ = true;
};

}  // namespace notellm

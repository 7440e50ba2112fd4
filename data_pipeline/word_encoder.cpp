#include "data_pipeline/word_encoder.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>

namespace notellm {
namespace {

constexpr UChar32 space_mark = 0x2581;  // what a space is for SentencePiece and Metaspace: they cannot tell the two

bool is_white_before(std::string_view text, size_t at) {
  auto i = static_cast<int32_t>(at);
  UChar32 c;
  U8_PREV(text.data(), 0, i, c);
  return u_isUWhiteSpace(c) || c == space_mark;
}

// End of the first word of `text`: before the first space that stands after another character than white space or ▁.
size_t word_end(std::string_view text) {
  size_t space = text.find(' ');
  while (space != std::string_view::npos && (space == 0 || is_white_before(text, space)))
    space = text.find(' ', space + 1);
  return std::min(space, text.size());
}

}  // namespace

std::span<const int32_t> WordEncoder::word(std::string_view text) {
  constexpr size_t longest_word = 64, most_words = 1 << 18;
  if (text.size() > longest_word) return rare_ = tokenizer_.encode(text, Place::goes_on);
  if (const auto known = words_.find(text); known != words_.end()) return known->second;
  if (words_.size() == most_words) words_.clear();
  return words_.emplace(text, tokenizer_.encode(text, Place::goes_on)).first->second;
}

void WordEncoder::encode(std::string_view text, Place place, std::vector<int32_t>& out) {
  const auto append = [&](std::span<const int32_t> tokens) { out.insert(out.end(), tokens.begin(), tokens.end()); };
  if (!tokenizer_.cuts_at_spaces()) return append(tokenizer_.encode(text, place));
  if (place != Place::goes_on) {
    const size_t end = word_end(text);
    append(tokenizer_.encode(text.substr(0, end), place));
    text.remove_prefix(end);
  }
  while (!text.empty()) {
    const size_t end = word_end(text);
    append(word(text.substr(0, end)));
    text.remove_prefix(end);
  }
}

std::string_view WordEncoder::truncate(std::string_view text, bool after_space, int64_t limit) {
  const std::string placed = std::string(after_space ? 1 : 0, ' ').append(text);
  const std::string_view all = placed;
  const bool by_words = tokenizer_.cuts_at_spaces();
  size_t cut = 0;
  int64_t count = 0;  // tokens before the cut
  while (cut < all.size()) {
    const size_t end = cut + word_end(all.substr(cut));
    const int64_t with_next = by_words ? count + std::ssize(word(all.substr(cut, end - cut)))
                                       : std::ssize(tokenizer_.encode(all.substr(0, end), Place::goes_on));
    if (with_next > limit) {
      const size_t from = by_words ? cut : 0;
      if (2 * count < limit)
        cut = std::max(cut, from + cut_inside(all.substr(from, end - from), by_words ? limit - count : limit));
      break;
    }
    count = with_next;
    cut = end;
  }
  return text.substr(0, std::max<size_t>(cut, after_space) - after_space);
}

size_t WordEncoder::cut_inside(std::string_view text, int64_t limit) const {
  const std::vector<size_t> ends = tokenizer_.token_ends(text);
  // Mostly the text of the first tokens gives these tokens again: what would have been merged over the cut was not
  // merged. But a regular expression that splits the text may look ahead, so that more of them have to go.
  for (auto count = std::min<size_t>(ends.size(), static_cast<size_t>(std::max<int64_t>(0, limit))); count > 0; --count)
    if (std::ssize(tokenizer_.encode(text.substr(0, ends[count - 1]), Place::goes_on)) <= limit) return ends[count - 1];
  return 0;
}

}  // namespace notellm

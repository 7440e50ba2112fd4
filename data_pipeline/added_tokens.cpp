#include "data_pipeline/added_tokens.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>

namespace notellm {
namespace {

// \w of Unicode's regular expressions (UTS 18).
bool is_word(UChar32 c) {
  constexpr uint32_t categories = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || (U_MASK(u_charType(c)) & categories) ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

UChar32 character_before(std::string_view text, size_t at) {
  auto i = static_cast<int32_t>(at);
  UChar32 c;
  U8_PREV(text.data(), 0, i, c);
  return c;
}

UChar32 character_at(std::string_view text, size_t at, size_t* next = nullptr) {
  auto i = static_cast<int32_t>(at);
  UChar32 c;
  U8_NEXT(text.data(), i, static_cast<int32_t>(text.size()), c);
  if (next) *next = static_cast<size_t>(i);
  return c;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !is_word(character_before(text, begin))) &&
         (end == text.size() || !is_word(character_at(text, end)));
}

size_t before_spaces(std::string_view text, size_t at, size_t begin) {
  while (at > begin && u_isUWhiteSpace(character_before(text, at))) {
    auto i = static_cast<int32_t>(at);
    U8_BACK_1(reinterpret_cast<const uint8_t*>(text.data()), 0, i);
    at = static_cast<size_t>(i);
  }
  return at;
}

size_t behind_spaces(std::string_view text, size_t at) {
  for (size_t next = at; at < text.size() && u_isUWhiteSpace(character_at(text, at, &next));) at = next;
  return at;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<unsigned char>(tokens_[i].content[0])].push_back(i);
    finds_none_ = finds_none_ && tokens_[i].special;
  }
  for (auto& list : by_first_byte_)
    std::ranges::stable_sort(list, std::greater(), [&](size_t i) { return tokens_[i].content.size(); });
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  for (const size_t i : by_first_byte_[static_cast<unsigned char>(text[at])])
    if (text.substr(at).starts_with(tokens_[i].content)) return &tokens_[i];
  return nullptr;
}

void AddedTokenFinder::split(std::string_view text, const Part& part) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !finds_none_;) {
    const AddedToken* token = longest_at(text, at);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->special || (token->single_word && !stands_alone(text, begin, end))) continue;
    if (token->lstrip) begin = before_spaces(text, begin, done);
    if (token->rstrip) end = behind_spaces(text, end);
    if (done < begin) part(done, begin, -1);
    part(begin, end, token->id);
    done = end;
  }
  if (done < text.size()) part(done, text.size(), -1);
}

}  // namespace notellm

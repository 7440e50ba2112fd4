// The tokenizers of sacrebleu and rouge-score.
#include <array>
#include <utility>

#include "evaluation/text_metrics.h"

namespace notellm {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_point(char c) { return c == '.' || c == ','; }
// ASCII punctuation but ' , - . and the space, which sacrebleu sets apart wherever it stands.
bool is_symbol(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
         (c >= ':' && c <= '@') || c == '/';
}

// Every two bytes of `text` of which first(a) and second(b) hold, from the left, without overlap, with spaces put in:
// before, between and behind them. As a regular expression over characters would do it, since both conditions hold for
// all bytes of a character beyond ASCII or for none.
template <class First, class Second>
std::string set_apart(const std::string& text, First first, Second second, const char* before, const char* behind) {
  std::string result;
  size_t i = 0;
  for (; i + 1 < text.size(); ++i) {
    if (!first(text[i]) || !second(text[i + 1])) {
      result += text[i];
      continue;
    }
    result += before;
    result += text[i];
    result += ' ';
    result += text[i + 1];
    result += behind;
    ++i;
  }
  if (i < text.size()) result += text[i];
  return result;
}

// The character that begins at byte `i` and how many bytes it has; a byte that begins none counts as one.
std::pair<uint32_t, size_t> character_at(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i + k])); };
  const size_t size = byte(0) < 0xc0 ? 1 : byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
  if (i + size > text.size() || size == 1) return {byte(0), 1};
  uint32_t code = byte(0) & (0xffu >> (size + 1));
  for (size_t k = 1; k < size; ++k) code = code << 6 | (byte(k) & 0x3f);
  return {code, size};
}

// What Python's str.split() splits at.
bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

Words split(std::string_view text) {
  Words words;
  std::string word;
  for (size_t i = 0; i < text.size();) {
    const auto [code, size] = character_at(text, i);
    if (!is_space(code)) {
      word += text.substr(i, size);
    } else if (!word.empty()) {
      words.push_back(std::exchange(word, {}));
    }
    i += size;
  }
  if (!word.empty()) words.push_back(word);
  return words;
}

// What 13a and zh have in common: symbols are words; points, unless between digits, too; so is a dash after a digit.
Words western_words(const std::string& text) {
  const auto digit = is_digit;
  const auto other = [](char c) { return !is_digit(c); };
  std::string apart;
  for (char c : text) {
    if (is_symbol(c))
      apart += std::string(" ") + c + ' ';
    else
      apart += c;
  }
  apart = set_apart(apart, other, is_point, "", " ");
  apart = set_apart(apart, is_point, other, " ", "");
  apart = set_apart(
      apart, digit, [](char c) { return c == '-'; }, "", " ");
  return split(apart);
}

void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
}

// The characters that sacrebleu's zh takes for Chinese. The last two ranges are not what its authors meant (planes
// beyond 16 bits), but what its comparison of strings comes to.
bool is_chinese(uint32_t c) {
  static constexpr std::array<std::pair<uint32_t, uint32_t>, 22> ranges = {
      {{0x3400, 0x4db5}, {0x4e00, 0x9fa5}, {0x9fa6, 0x9fbb}, {0xf900, 0xfa2d}, {0xfa30, 0xfa6a}, {0xfa70, 0xfad9},
       {0xff00, 0xffef}, {0x2e80, 0x2eff}, {0x3000, 0x303f}, {0x31c0, 0x31ef}, {0x2f00, 0x2fdf}, {0x2ff0, 0x2fff},
       {0x3100, 0x312f}, {0x31a0, 0x31bf}, {0xfe10, 0xfe1f}, {0xfe30, 0xfe4f}, {0x2600, 0x26ff}, {0x2700, 0x27bf},
       {0x3200, 0x32ff}, {0x3300, 0x33ff}, {0x2001, 0x2a6d}, {0x2f81, 0x2fa1}}};
  for (const auto& [first, last] : ranges)
    if (first <= c && c <= last) return true;
  return false;
}

Words chinese_words(std::string_view text) {
  // Spaces at the ends go before the characters are looked at: some of them are "Chinese".
  size_t begin = 0, end = 0;
  bool seen = false;
  for (size_t i = 0; i < text.size();) {
    const auto [code, size] = character_at(text, i);
    if (!is_space(code)) {
      if (!seen) begin = i;
      seen = true;
      end = i + size;
    }
    i += size;
  }
  std::string apart;
  for (size_t i = begin; i < end;) {
    const auto [code, size] = character_at(text, i);
    const std::string_view character = text.substr(i, size);
    if (is_chinese(code))
      apart.append(" ").append(character).append(" ");
    else
      apart += character;
    i += size;
  }
  return western_words(apart);
}

}  // namespace

Words bleu_words(std::string_view text, TextWords kind) {
  if (kind == TextWords::chinese) return chinese_words(text);
  // sacrebleu strips a text on the right first; only a dash at a line's end sees it.
  size_t end = 0;
  for (size_t i = 0; i < text.size();) {
    const auto [code, size] = character_at(text, i);
    i += size;
    if (!is_space(code)) end = i;
  }
  std::string line(text.substr(0, end));
  replace_all(line, "<skipped>", "");
  replace_all(line, "-\n", "");
  replace_all(line, "\n", " ");
  replace_all(line, "&quot;", "\"");
  replace_all(line, "&amp;", "&");
  replace_all(line, "&lt;", "<");
  replace_all(line, "&gt;", ">");
  return western_words(" " + line + " ");
}

Words rouge_words(std::string_view text, TextWords kind) {
  if (kind == TextWords::chinese) return chinese_words(text);
  Words words;
  std::string word;
  for (size_t i = 0; i < text.size();) {
    const auto [code, size] = character_at(text, i);
    i += size;
    const auto end_word = [&] {
      if (!word.empty()) words.push_back(std::exchange(word, {}));
    };
    // Lower case of the Kelvin sign is k, of a dotted capital I it is i and a dot.
    const uint32_t c = code == 0x212a               ? 'k'
                       : code == 0x130              ? 'i'
                       : code >= 'A' && code <= 'Z' ? code - 'A' + 'a'
                                                    : code;
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
      word += static_cast<char>(c);
      if (code == 0x130) end_word();
    } else {
      end_word();
    }
  }
  if (!word.empty()) words.push_back(word);
  return words;
}

}  // namespace notellm

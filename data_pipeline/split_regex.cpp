#define PCRE2_CODE_UNIT_WIDTH 8
#include "data_pipeline/split_regex.h"

#include <pcre2.h>

#include <algorithm>

#include "runtime/error.h"

namespace notellm {
namespace {

// Unicode's White_Space, as the inside of a class. PCRE2's own \s has U+180E too.
constexpr const char* white_space =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

constexpr std::string_view categories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",
                                           "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
                                           "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};

// Reads a pattern once from left to right, refuses what the two libraries might read in different ways, and writes it
// for PCRE2.
class Translation {
 public:
  Translation(const std::string& pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    alternatives(0, false);
    if (at_ < pattern_.size()) refuse("a closing parenthesis");
    return out_;
  }

 private:
  [[noreturn]] void refuse(const char* what) const {
    fail(ErrorKind::data,
         "{}: the regular expression {} has {} at byte {}, which is not supported; supported are characters, \\s \\S "
         "\\d \\r \\n \\t \\p{{L}}, classes, groups, (?i:…), (?=…), (?!…), |, ? * + and {{n,m}}",
         where_, pattern_, what, at_);
  }

  bool ended() const { return at_ == pattern_.size(); }
  char peek() const { return ended() ? '\0' : pattern_[at_]; }
  bool take(std::string_view text) {
    if (pattern_.compare(at_, text.size(), text) != 0) return false;
    at_ += text.size();
    return true;
  }

  void alternatives(int depth, bool caseless) {
    if (depth > 32) refuse("too many groups in each other");
    while (true) {
      while (!ended() && peek() != '|' && peek() != ')') {
        atom(depth, caseless);
        quantifier();
      }
      if (peek() != '|' || ended()) return;
      out_ += pattern_[at_++];
    }
  }

  void atom(int depth, bool caseless) {
    const char c = peek();
    if (c == '(') return group(depth, caseless);
    if (caseless && (c == '[' || c == '\\' || static_cast<unsigned char>(c) >= 0x80))
      refuse("more than ASCII in (?i:…)");
    if (c == '[') return character_class();
    if (c == '\\') return escape(false);
    if (std::string_view("^$.*+?{}]").find(c) != std::string_view::npos || c == '\0') refuse("a special character");
    // What Oniguruma also matches with one character: "ss" with ß, "st" with ﬆ, …
    for (const char* pair : {"ss", "ff", "fi", "fl", "st"})
      if (caseless && at_ + 1 < pattern_.size() && (c | 0x20) == pair[0] && (pattern_[at_ + 1] | 0x20) == pair[1])
        refuse("a pair that is a ligature in (?i:…)");
    do out_ += pattern_[at_++];
    while ((static_cast<unsigned char>(peek()) & 0xc0) == 0x80);  // the rest of the character
  }

  void group(int depth, bool caseless) {
    static constexpr std::string_view heads[] = {"(?:", "(?i:", "(?=", "(?!"};
    const auto head = std::find_if(std::begin(heads), std::end(heads), [&](auto text) { return take(text); });
    if (head == std::end(heads)) {
      if (pattern_.compare(at_, 2, "(?") == 0 || pattern_.compare(at_, 2, "(*") == 0) refuse("a group of another kind");
      ++at_;
    }
    out_ += head == std::end(heads) ? "(?:" : *head;
    alternatives(depth + 1, caseless || (head != std::end(heads) && *head == "(?i:"));
    if (peek() != ')' || ended()) refuse("an open group");
    out_ += pattern_[at_++];
  }

  void escape(bool in_class) {
    ++at_;
    const char c = peek();
    if (c == 's') {
      out_ += in_class ? white_space : fmt::format("[{}]", white_space);
    } else if (c == 'S' && !in_class) {
      out_ += fmt::format("[^{}]", white_space);
    } else if (c == 'd') {
      out_ += "\\p{Nd}";
    } else if (c == 'p' || c == 'P') {
      return category();
    } else if (c == 'r' || c == 'n' || c == 't' ||
               (c > ' ' && c < 0x7f && !std::isalnum(static_cast<unsigned char>(c)))) {
      out_ += std::string("\\") + c;
    } else {
      refuse("an escape");
    }
    ++at_;
  }

  // \p{…} from the p on.
  void category() {
    const size_t open = at_ + 1, close = pattern_.find('}', at_);
    if (open >= pattern_.size() || pattern_[open] != '{' || close == std::string::npos) refuse("a property");
    const std::string_view name = std::string_view(pattern_).substr(open + 1, close - open - 1);
    if (std::ranges::find(categories, name) == std::end(categories)) refuse("a property");
    out_ += fmt::format("\\{}{{{}}}", pattern_[at_], name);
    at_ = close + 1;
  }

  // \s, \d, \p{…}: more than a character.
  bool is_set(size_t at) const {
    return at + 1 < pattern_.size() && pattern_[at] == '\\' &&
           std::string_view("sdpP").find(pattern_[at + 1]) != std::string_view::npos;
  }

  void character_class() {
    out_ += pattern_[at_++];
    if (peek() == '^') out_ += pattern_[at_++];
    if (peek() == ']') refuse("an empty class");
    for (const size_t first = at_; peek() != ']';) {
      if (ended() || peek() == '\0') refuse("an open class");
      if (peek() == '[' || pattern_.compare(at_, 2, "&&") == 0) refuse("a class in a class");
      if (peek() == '-' && at_ > first && is_set(at_ + 1)) refuse("a range to a class");
      if (peek() == '\\') {
        const bool set = is_set(at_);
        escape(true);
        if (set && peek() == '-' && pattern_.compare(at_, 2, "-]") != 0) refuse("a range from a class");
      } else {
        out_ += pattern_[at_++];
      }
    }
    out_ += pattern_[at_++];
  }

  void quantifier() {
    const char c = peek();
    if (c == '?' || c == '*' || c == '+') {
      out_ += pattern_[at_++];
      if (peek() == '?' || peek() == '+') out_ += pattern_[at_++];
    } else if (c == '{') {
      // Oniguruma reads {n}? and {n}+ in ways of its own: nothing may follow.
      const size_t close = pattern_.find('}', at_);
      if (close == std::string::npos || close > at_ + 9) refuse("a repetition");
      const std::string inside = pattern_.substr(at_ + 1, close - at_ - 1);
      const size_t comma = inside.find(',');
      const bool digits = std::ranges::all_of(inside, [](char d) { return d == ',' || (d >= '0' && d <= '9'); });
      if (!digits || comma == 0 || inside.empty() || inside.find(',', comma + 1) < inside.size())
        refuse("a repetition");
      out_ += pattern_.substr(at_, close + 1 - at_);
      at_ = close + 1;
    }
    if (std::string_view("?*+{").find(peek()) != std::string_view::npos && !ended()) refuse("a repeated repetition");
  }

  const std::string& pattern_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
};

// What a thread needs to match: room for one match, and a stack that grows with long texts.
struct MatchMemory {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(size_t{32} << 10, size_t{16} << 20, nullptr);
  MatchMemory() {
    NOTELLM_CHECK(data && context && stack, "no memory for PCRE2");
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchMemory() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

SplitRegex::SplitRegex(const std::string& pattern, const std::string& where) {
  compile(Translation(pattern, where).run(), 0, where);
}

SplitRegex SplitRegex::literal(const std::string& text) {
  NOTELLM_CHECK(!text.empty(), "a literal must not be empty");
  SplitRegex regex;
  regex.compile(text, PCRE2_LITERAL, "literal");
  return regex;
}

void SplitRegex::compile(const std::string& pattern, uint32_t options, const std::string& where) {
  int error = 0;
  size_t at = 0;
  const uint32_t unicode = options & PCRE2_LITERAL ? PCRE2_UTF : PCRE2_UTF | PCRE2_UCP;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options | unicode,
                                   &error, &at, nullptr);
  if (!code) fail(ErrorKind::data, "{}: the regular expression {} is not valid: {}", where, pattern, message_of(error));
  code_.reset(code, pcre2_code_free);
  uint32_t matches_nothing = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_nothing);
  if (matches_nothing)
    fail(ErrorKind::data, "{}: the regular expression {} can match nothing, which is not supported", where, pattern);
  // Where the machine has no compiler for patterns, PCRE2 interprets them.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

std::optional<SplitRegex::Match> SplitRegex::find(std::string_view text, size_t from) const {
  thread_local MatchMemory memory;
  const auto match = [&](uint32_t options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, memory.data, memory.context);
  };
  int found = match(0);
  // Compiled code has a stack of its own; the interpreter takes more memory as it goes.
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_JIT);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0)
    fail(ErrorKind::data, "a text of {} bytes cannot be split by the tokenizer's regular expression: {}", text.size(),
         message_of(found));
  const size_t* range = pcre2_get_ovector_pointer(memory.data);
  return Match{range[0], range[1]};
}

}  // namespace notellm

#include "data_pipeline/pre_tokenizer.h"

#include <algorithm>

namespace notellm {
namespace {

constexpr const char* gpt2_regex = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr const char* digit_regex = "\\p{N}";

// Regular expressions that match every character, and never go on over a space: spaces stand only at a match's
// beginning or after other white space, and looking ahead only asks for white space. So a text that is cut before a
// space, after another character than white space, has the matches of its parts. Others may be so too, but are not
// known to be.
constexpr const char* known_regexes[] = {
    gpt2_regex,
    // Llama 3
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+",
    // Qwen2
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+",
};

// Isolated matches of an expression that matches everything: the same as removing what it does not match.
bool is_known(const SplitStep& step) {
  return !step.literal && std::ranges::find(known_regexes, step.pattern) != std::end(known_regexes) &&
         (step.invert ? step.behavior == SplitBehavior::removed : step.behavior == SplitBehavior::isolated);
}

bool is_digits(const SplitStep& step) {
  return !step.literal && step.pattern == digit_regex && !step.invert &&
         (step.behavior == SplitBehavior::isolated || step.behavior == SplitBehavior::contiguous);
}

}  // namespace

SplitStep SplitStep::digits(bool individual) {
  return {.pattern = digit_regex, .behavior = individual ? SplitBehavior::isolated : SplitBehavior::contiguous};
}

PreTokenizer::PreTokenizer(const PreTokenizerSpec& spec, const std::string& where) : spec_(spec) {
  for (const SplitStep& step : spec.splits) {
    steps_.push_back({step.literal ? SplitRegex::literal(step.pattern) : SplitRegex(step.pattern, where), step.behavior,
                      step.invert});
    local_ = local_ && (is_known(step) || is_digits(step));
    splits_at_spaces_ = splits_at_spaces_ || is_known(step);
  }
  if (spec.last == PreTokenizerSpec::Last::byte_level && spec.use_regex) {
    steps_.push_back({SplitRegex(gpt2_regex, where), SplitBehavior::isolated, false});
    splits_at_spaces_ = true;
  }
  splits_at_spaces_ = splits_at_spaces_ || (spec.last == PreTokenizerSpec::Last::metaspace && spec.split);
}

bool PreTokenizer::prepends(Before before) const {
  if (before == Before::text) return false;
  if (spec_.last == PreTokenizerSpec::Last::byte_level) return spec_.add_prefix_space;
  return spec_.last == PreTokenizerSpec::Last::metaspace &&
         (spec_.prepend == PrependScheme::always ||
          (spec_.prepend == PrependScheme::first && before == Before::nothing));
}

void PreTokenizer::prepare(MappedText& text) const {
  if (spec_.last == PreTokenizerSpec::Last::metaspace) text.replace(" ", spec_.replacement);
}

void PreTokenizer::split(std::string_view text, Before before, const Piece& piece) const {
  if (!text.empty()) split_from(0, text, text.size(), before, piece);
}

// `text` ends at `end` of the whole text. ByteLevel's own expression is the last step: the space comes before it.
void PreTokenizer::split_from(size_t step, std::string_view text, size_t end, Before before, const Piece& piece) const {
  const bool byte_level = spec_.last == PreTokenizerSpec::Last::byte_level;
  const size_t own_steps = spec_.splits.size();
  std::string with_space;
  if (step == own_steps && byte_level && prepends(before) && !text.starts_with(' ')) {
    with_space.assign(1, ' ').append(text);
    text = with_space;
  }
  if (step == steps_.size()) return finish(text, end, before, piece);
  apply(steps_[step], text, [&](size_t part_begin, size_t part_end) {
    const std::string_view part = text.substr(part_begin, part_end - part_begin);
    const size_t ends = end - (text.size() - part_end);
    // Behind ByteLevel's expression nothing is put before pieces any more.
    if (step >= own_steps) return piece(part, ends);
    split_from(step + 1, part, ends, part_begin == 0 ? before : Before::token, piece);
  });
}

void PreTokenizer::finish(std::string_view text, size_t end, Before before, const Piece& piece) const {
  if (spec_.last != PreTokenizerSpec::Last::metaspace) return piece(text, end);
  const std::string& mark = spec_.replacement;
  std::string with_mark;
  if (prepends(before) && !text.starts_with(mark)) {
    with_mark.assign(mark).append(text);
    text = with_mark;
  }
  if (!spec_.split) return piece(text, end);
  for (size_t begin = 0; begin < text.size();) {
    const size_t next = std::min(text.find(mark, begin + 1), text.size());
    piece(text.substr(begin, next - begin), end - (text.size() - next));
    begin = next;
  }
}

void PreTokenizer::apply(const Step& step, std::string_view text,
                         const std::function<void(size_t, size_t)>& part) const {
  size_t open = 0;        // begin of the part that is being put together
  bool previous = false;  // the range before was a match
  bool waiting = false;   // merged_with_next: the open part is a match that waits for what follows
  const auto range = [&](size_t begin, size_t end, bool match) {
    if (begin == end) return;
    bool joins = false;
    switch (step.behavior) {
      case SplitBehavior::removed:
        if (!match) part(begin, end);
        return;
      case SplitBehavior::isolated:
        part(begin, end);
        return;
      case SplitBehavior::contiguous:
        joins = match == previous;
        break;
      case SplitBehavior::merged_with_previous:
        joins = match && !previous;
        break;
      case SplitBehavior::merged_with_next:
        joins = waiting && !match;
        waiting = match;
        break;
    }
    if (begin > open && !joins) {
      part(open, begin);
      open = begin;
    }
    previous = match;
  };
  size_t done = 0;
  while (done < text.size()) {
    const auto match = step.regex.find(text, done);
    range(done, match ? match->begin : text.size(), step.invert);
    if (!match) break;
    range(match->begin, match->end, !step.invert);
    done = match->end;
  }
  const bool collects = step.behavior != SplitBehavior::removed && step.behavior != SplitBehavior::isolated;
  if (collects && open < text.size()) part(open, text.size());
}

}  // namespace notellm

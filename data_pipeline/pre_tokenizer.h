// Splits a normalised text into the pieces that are tokenised each by itself, as the pre_tokenizer of a tokenizer.json
// says: steps that split, one after the other, and at the end, perhaps, ByteLevel or Metaspace.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data_pipeline/normalizer.h"
#include "data_pipeline/split_regex.h"

namespace notellm {

enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
enum class PrependScheme { always, first, never };

struct SplitStep {
  std::string pattern;
  bool literal = false;  // the pattern is a text, not a regular expression
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // what the pattern does not match counts as matched

  // Digits, of any script: each by itself, or runs of them.
  static SplitStep digits(bool individual);
};

struct PreTokenizerSpec {
  std::vector<SplitStep> splits = {};
  enum class Last { none, byte_level, metaspace } last = Last::none;
  // byte_level: a space before each piece that does not begin with one; then GPT-2's regular expression.
  bool add_prefix_space = false, use_regex = false;
  // metaspace: spaces become `replacement`, of which one is put before a text that does not begin with it, always or
  // only at the beginning of the sequence; `split`: each begins a piece. Without splits.
  std::string replacement = {};
  PrependScheme prepend = PrependScheme::never;
  bool split = false;
};

class PreTokenizer {
 public:
  // Throws Error(data), beginning with `where`, for a regular expression that is not supported.
  PreTokenizer(const PreTokenizerSpec& spec, const std::string& where);

  // What stands before the text, which is part of a sequence.
  enum class Before { nothing, token, text };
  // Calls piece(text, end) for each piece: its text, not empty, and where it ends in `text` after the spaces of
  // Metaspace were replaced (prepare). A piece with something put before it begins with that.
  using Piece = std::function<void(std::string_view piece, size_t end)>;
  void split(std::string_view text, Before before, const Piece& piece) const;
  // Replaces spaces for Metaspace: to be called before split.
  void prepare(MappedText& text) const;

  // Whether something is put before a text that does not begin with a space.
  bool prepends(Before before) const;
  // A cut of the text at a space after another character than white space only adds a cut there to the pieces.
  bool is_local() const { return local_; }
  // … and no piece goes over such a space.
  bool splits_at_spaces() const { return splits_at_spaces_; }

 private:
  struct Step {
    SplitRegex regex;
    SplitBehavior behavior;
    bool invert;
  };
  void split_from(size_t step, std::string_view text, size_t end, Before before, const Piece& piece) const;
  void finish(std::string_view text, size_t end, Before before, const Piece& piece) const;
  void apply(const Step& step, std::string_view text, const std::function<void(size_t, size_t)>& part) const;

  PreTokenizerSpec spec_;
  std::vector<Step> steps_;
  bool local_ = true, splits_at_spaces_ = false;
};

}  // namespace notellm

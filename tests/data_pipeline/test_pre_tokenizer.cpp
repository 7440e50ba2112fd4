#include <gtest/gtest.h>

#include "data_pipeline/normalizer.h"
#include "data_pipeline/pre_tokenizer.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using Before = PreTokenizer::Before;
using Last = PreTokenizerSpec::Last;
using Texts = std::vector<std::string>;

// The pieces, each of which ends where it says.
Texts pieces(const PreTokenizerSpec& spec, const std::string& text, Before before = Before::nothing) {
  const PreTokenizer pre_tokenizer(spec, "test");
  MappedText mapped(text, false);
  pre_tokenizer.prepare(mapped);
  Texts result;
  pre_tokenizer.split(mapped.text(), before, [&](std::string_view piece, size_t end) {
    result.emplace_back(piece);
    EXPECT_TRUE(mapped.text().substr(0, end).ends_with(piece.back()));
  });
  return result;
}

Texts split(const std::string& pattern, SplitBehavior behavior, bool invert, const std::string& text) {
  return pieces({.splits = {{.pattern = pattern, .behavior = behavior, .invert = invert}}}, text);
}

// The examples of the `tokenizers` library's documentation, and what begins and ends with a match.
TEST(PreTokenizer, BehaviorsOfSplit) {
  using enum SplitBehavior;
  const std::string text = "the-final--countdown";
  EXPECT_EQ(split("-", removed, false, text), (Texts{"the", "final", "countdown"}));
  EXPECT_EQ(split("-", isolated, false, text), (Texts{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(split("-", merged_with_previous, false, text), (Texts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(split("-", merged_with_next, false, text), (Texts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(split("-", contiguous, false, text), (Texts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(split("[a-z]+", removed, true, text), (Texts{"the", "final", "countdown"}));
  for (const SplitBehavior behavior : {isolated, merged_with_previous, merged_with_next})
    EXPECT_EQ(split("-", behavior, false, "--"), (Texts{"-", "-"}));
  EXPECT_EQ(split("-", contiguous, false, "--a-"), (Texts{"--", "a", "-"}));
  EXPECT_EQ(split("-", merged_with_next, false, "-a-"), (Texts{"-a", "-"}));
  EXPECT_EQ(split("-", merged_with_previous, false, "-a-"), (Texts{"-", "a-"}));
  EXPECT_EQ(split("-", removed, false, "--"), Texts{});
  EXPECT_EQ(split("-", isolated, false, ""), Texts{});
  EXPECT_EQ(pieces({.splits = {{.pattern = "a.", .literal = true}}}, "aba.ab"), (Texts{"ab", "a.", "ab"}));
}

TEST(PreTokenizer, Digits) {
  EXPECT_EQ(pieces({.splits = {SplitStep::digits(true)}}, "a12\u0663b"), (Texts{"a", "1", "2", "\u0663", "b"}));
  EXPECT_EQ(pieces({.splits = {SplitStep::digits(false)}}, "a12\u0663b"), (Texts{"a", "12\u0663", "b"}));
}

TEST(PreTokenizer, ByteLevelPutsASpaceBeforeEachPartThatHasNone) {
  PreTokenizerSpec spec{.last = Last::byte_level, .add_prefix_space = true, .use_regex = true};
  EXPECT_EQ(pieces(spec, "it's a  test"), (Texts{" it", "'s", " a", " ", " test"}));
  EXPECT_EQ(pieces(spec, " it"), Texts{" it"});
  EXPECT_EQ(pieces(spec, "it", Before::token), Texts{" it"});
  EXPECT_EQ(pieces(spec, "it", Before::text), Texts{"it"});
  spec.splits = {SplitStep::digits(false)};
  EXPECT_EQ(pieces(spec, "a1 b", Before::text), (Texts{"a", " 1", " b"}));
  spec.use_regex = false;
  EXPECT_EQ(pieces(spec, "it's a"), Texts{" it's a"});
}

TEST(PreTokenizer, MetaspaceMarksSpaces) {
  PreTokenizerSpec spec{.last = Last::metaspace, .replacement = "_", .prepend = PrependScheme::always, .split = true};
  EXPECT_EQ(pieces(spec, "a  b "), (Texts{"_a", "_", "_b", "_"}));
  EXPECT_EQ(pieces(spec, " a"), Texts{"_a"});
  EXPECT_EQ(pieces(spec, "a", Before::text), Texts{"a"});
  EXPECT_EQ(pieces(spec, "a", Before::token), Texts{"_a"});
  spec.prepend = PrependScheme::first;
  EXPECT_EQ(pieces(spec, "a", Before::nothing), Texts{"_a"});
  EXPECT_EQ(pieces(spec, "a", Before::token), Texts{"a"});
  spec.prepend = PrependScheme::never;
  spec.split = false;
  EXPECT_EQ(pieces(spec, "a b"), Texts{"a_b"});
}

TEST(PreTokenizer, KnowsWhereTextsMayBeCut) {
  const auto local = [](const PreTokenizerSpec& spec) { return PreTokenizer(spec, "test").is_local(); };
  const auto splits = [](const PreTokenizerSpec& spec) { return PreTokenizer(spec, "test").splits_at_spaces(); };
  const std::string qwen2 =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
      "|\\s+(?!\\S)|\\s+";
  EXPECT_TRUE(local({}) && !splits({}));
  EXPECT_TRUE(local({.splits = {{.pattern = qwen2}}}) && splits({.splits = {{.pattern = qwen2}}}));
  EXPECT_TRUE(splits({.splits = {{.pattern = qwen2, .behavior = SplitBehavior::removed, .invert = true}}}));
  EXPECT_FALSE(local({.splits = {{.pattern = qwen2, .behavior = SplitBehavior::removed}}}));
  EXPECT_FALSE(local({.splits = {{.pattern = qwen2, .behavior = SplitBehavior::contiguous}}}));
  EXPECT_FALSE(local({.splits = {{.pattern = qwen2, .literal = true}}}));
  EXPECT_FALSE(local({.splits = {{.pattern = "\\S+ \\S+"}}}));
  EXPECT_TRUE(local({.splits = {SplitStep::digits(true)}}) && !splits({.splits = {SplitStep::digits(true)}}));
  EXPECT_TRUE(splits({.last = Last::byte_level, .use_regex = true}));
  EXPECT_FALSE(splits({.last = Last::byte_level}));
}

TEST(SplitRegex, RefusesWhatIsNotReadAlikeByBothLibraries) {
  const std::pair<const char*, const char*> patterns[] = {
      {"\\w+", "an escape at byte 1"},
      {"\\h", "an escape"},
      {"\\bx", "an escape"},
      {"\\p{Greek}x", "a property"},
      {"\\p{L", "a property"},
      {"\\pL", "a property"},
      {".x", "a special character"},
      {"^x", "a special"},
      {"x$", "a special"},
      {"(?<!a)x", "a group of another kind"},
      {"(?m:x)", "a group"},
      {"(?<n>x)", "a group"},
      {"(*FAIL)x", "a group"},
      {"(x", "an open group"},
      {"x)", "a closing parenthesis"},
      {"[a[b]]", "a class in a class"},
      {"[a&&b]", "a class"},
      {"[a", "an open class"},
      {"[\\s-x]", "a range from a class"},
      {"[a\\p{L}-x]", "a range from a class"},
      {"[+-\\s]", "a range to a class"},
      {"[]a]", "an empty class"},
      {"[^\\S]", "an escape"},
      {"x{1,2}?", "a repeated repetition"},
      {"x{1,2}+", "a repeated repetition"},
      {"x{,2}", "a repetition"},
      {"x{a}", "a repetition"},
      {"x**", "a repeated repetition"},
      {"x{1", "a repetition"},
      {"+x", "a special character"},
      {"(?i:\\p{Lu})x", "more than ASCII"},
      {"(?i:é)x", "more than"},
      {"(?i:[a-z])x", "more than"},
      {"(?i:ss)x", "a ligature"},
      {"(?i:sTx)", "a ligature"},
      {"\\", "an escape"},
      {"x*", "can match nothing"},
      {"(?!x)", "can match"},
      {"[z-a]", "is not valid"},
      {"x{3,2}", "is not valid"},
  };
  for (const auto& [pattern, message] : patterns) {
    SCOPED_TRACE(pattern);
    EXPECT_ERROR(data, message, SplitRegex(pattern, "file: path"));
    EXPECT_ERROR(data, "file: path: the regular expression ", SplitRegex(pattern, "file: path"));
  }
  std::string nested = "x";
  for (int i = 0; i < 100; ++i) nested = "(" + nested + ")";
  EXPECT_ERROR(data, "too many groups", SplitRegex(nested, "file"));
}

TEST(SplitRegex, WhiteSpaceIsUnicodes) {
  const SplitRegex space("\\s", "test"), other("[^\\s]", "test"), not_space("\\S", "test");
  for (const char* c : {" ", "\t", "\n", "\v", "\f", "\r", "\u0085", "\u00a0", "\u1680", "\u2000", "\u200a", "\u2028",
                        "\u2029", "\u202f", "\u205f", "\u3000"}) {
    EXPECT_TRUE(space.find(c, 0) && !other.find(c, 0) && !not_space.find(c, 0)) << c;
  }
  for (const char* c : {"a", "\u180e", "\u200b", "\ufeff", "\x1c", "\u2060"})
    EXPECT_TRUE(!space.find(c, 0) && other.find(c, 0) && not_space.find(c, 0)) << c;
}

// Long texts neither take long nor run out of stack.
TEST(SplitRegex, LongTexts) {
  const SplitRegex regex("(?:a|b|[^c])+x|\\s+(?!\\S)|\\s+|[^\\s]", "test");
  const std::string spaces(1'000'000, ' ');
  EXPECT_EQ(regex.find(spaces, 0)->end, spaces.size());
}

TEST(MappedText, KnowsWhereItsBytesComeFrom) {
  MappedText text(
      "a\xff"
      "e\xcc\x81 b",
      true);  // a, a broken byte, e with a combining accent, space, b
  EXPECT_EQ(text.text(), "a\ufffde\xcc\x81 b");
  EXPECT_EQ(text.ends(), (std::vector<uint32_t>{1, 1, 1, 2, 3, 4, 5, 6, 7}));
  text.nfc();
  EXPECT_EQ(text.text(), "a\ufffd\u00e9 b");
  EXPECT_EQ(text.ends(), (std::vector<uint32_t>{1, 1, 1, 2, 2, 5, 6, 7}));
  text.replace(" ", "__");
  text.prepend("__");
  EXPECT_EQ(text.text(), "__a\ufffd\u00e9__b");
  EXPECT_EQ(text.ends(), (std::vector<uint32_t>{0, 0, 1, 1, 1, 2, 2, 5, 5, 6, 7}));
  EXPECT_EQ(text.part(2, 3).text(), "a");
  EXPECT_EQ(text.part(7, 9).ends(), (std::vector<uint32_t>{5, 5}));
  MappedText empty("", true);
  empty.prepend("x");
  EXPECT_EQ(empty.text(), "");
}

}  // namespace
}  // namespace notellm

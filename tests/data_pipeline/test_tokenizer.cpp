#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <map>

#include "data_pipeline/tokenizer.h"
#include "data_pipeline/word_encoder.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

using test::TempDir;
using Tokens = std::vector<int32_t>;

constexpr const char* llama_tokenizer = "models/llama2-tokenizer.model";

std::vector<std::string> some_texts() {
  std::vector<std::string> texts;
  const char* words[] = {"real-time", "strategy", "game",      "of",   "ancient", "warfare",
                         "library",   "files",    "{'title':", "data", "science"};
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (int w = 0; w < 9; ++w) text.append(w ? " " : "").append(words[(i * 7 + w * w * 3) % 11]);
    texts.push_back(text);
  }
  return texts;
}

const Tokenizer& trained() {
  static const Tokenizer tokenizer = Tokenizer::from_model(Tokenizer::train(some_texts(), 400), "trained");
  return tokenizer;
}

// Texts that a tokenizer may stumble on.
const std::vector<std::string> sample_texts = {
    "",
    "library",
    " library",
    "  two  spaces   and more ",
    "real-time strategy game of ancient warfare",
    "a\nnew line\tand a tab",
    "\xe7\xac\x94\xe8\xae\xb0 \xf0\x9f\x98\x80 na\xc3\xafve",  // 笔记 😀 naïve
    "<s> </s> <unk> [EMB] <0x0A>",
    "{'title': \"quoted\", 'content': {}}",
    std::string(300, 'x') + " long"};

// What SentencePiece trains with these options besides the ones all share.
std::string trained_with(std::map<std::string, std::string> options, std::vector<std::string> texts = some_texts()) {
  struct Iterator : sentencepiece::SentenceIterator {
    explicit Iterator(std::vector<std::string> all) : texts(std::move(all)) {}
    std::vector<std::string> texts;
    size_t next = 0;
    bool done() const override { return next == texts.size(); }
    void Next() override { ++next; }
    const std::string& value() const override { return texts[next]; }
    sentencepiece::util::Status status() const override { return {}; }
  } iterator(std::move(texts));
  std::unordered_map<std::string, std::string> all = {{"model_type", "bpe"},
                                                      {"vocab_size", "400"},
                                                      {"hard_vocab_limit", "false"},
                                                      {"minloglevel", "2"},
                                                      {"remove_extra_whitespaces", "false"}};
  for (const auto& [key, value] : options) all[key] = value;
  std::string model;
  EXPECT_TRUE(sentencepiece::SentencePieceTrainer::Train(all, &iterator, &model).ok());
  return model;
}

// The tokens of both parts, one after the other.
Tokens encode_cut(const Tokenizer& tokenizer, const std::string& text, size_t cut, Place place) {
  Tokens parts = tokenizer.encode(text.substr(0, cut), place);
  for (const int32_t id : tokenizer.encode(text.substr(cut), Place::goes_on)) parts.push_back(id);
  return parts;
}

TEST(Tokenizer, IdsAreUnknownBosEosBytesPiecesEmb) {
  const Tokenizer& t = trained();
  EXPECT_EQ(t.piece(0), "<unk>");
  EXPECT_EQ(t.bos(), 1);
  EXPECT_EQ(t.eos(), 2);
  EXPECT_EQ(t.piece(3), "<0x00>");
  EXPECT_EQ(t.emb(), t.vocabulary() - 1);
  EXPECT_EQ(t.piece(t.emb()), "[EMB]");
  EXPECT_LE(t.vocabulary(), 401);
  EXPECT_GT(t.vocabulary(), 259 + 20);
}

TEST(Tokenizer, TrainingIsDeterministic) {
  EXPECT_EQ(checksum(Tokenizer::train(some_texts(), 400)), checksum(trained().files().at("tokenizer.model")));
}

TEST(Tokenizer, OnlyABeginningGetsASpaceBefore) {
  const Tokenizer& t = trained();
  const Tokens begins = t.encode("library", Place::begins), goes_on = t.encode("library", Place::goes_on);
  EXPECT_EQ(begins, t.encode(" library", Place::goes_on));
  EXPECT_NE(begins, goes_on);
  EXPECT_EQ(t.piece(begins[0]).substr(0, 3), "\xe2\x96\x81");
  EXPECT_EQ(t.piece(goes_on[0])[0], 'l');
}

TEST(Tokenizer, DecodeGivesTheTextBack) {
  for (const std::string& text : sample_texts)
    for (const Place place : {Place::begins, Place::after_token, Place::goes_on})
      EXPECT_EQ(trained().decode(trained().encode(text, place), place), text) << static_cast<int>(place);
}

TEST(Tokenizer, DecodeOfSpecialTokens) {
  const Tokenizer& t = trained();
  Tokens tokens = {*t.bos()};
  for (const int32_t id : t.encode("word is:\"", Place::begins)) tokens.push_back(id);
  tokens.push_back(t.emb());
  for (const int32_t id : t.encode("\". The", Place::goes_on)) tokens.push_back(id);
  tokens.push_back(t.eos());
  EXPECT_EQ(t.decode(tokens, Place::begins), "word is:\"[EMB]\". The");
  EXPECT_ERROR(data, "token -1", t.decode(Tokens{-1}, Place::begins));
  EXPECT_ERROR(data, "outside the tokenizer's vocabulary", t.decode(Tokens{t.vocabulary()}, Place::begins));
  EXPECT_ERROR(data, "outside the tokenizer's vocabulary", t.piece(t.vocabulary()));
}

TEST(Tokenizer, SpecialTokensInATextAreText) {
  for (const int32_t token : trained().encode("<s> </s> <unk> [EMB]", Place::begins)) {
    EXPECT_GT(token, 2);
    EXPECT_LT(token, trained().emb());
  }
}

// SentencePiece replaces each byte; a tokenizer.json each run (test_json_tokenizer.cpp).
TEST(Tokenizer, BytesThatAreNoUtf8AreReplaced) {
  EXPECT_EQ(trained().encode("a\xe7\xac b", Place::goes_on), trained().encode("a\ufffd\ufffd b", Place::goes_on));
}

TEST(Tokenizer, CutAtASpaceTheTokensAreThoseOfTheWhole) {
  for (const std::string& text : sample_texts)
    for (size_t cut = text.find(' ', 1); cut < text.size(); cut = text.find(' ', cut + 1)) {
      if (text[cut - 1] == ' ') continue;
      EXPECT_EQ(encode_cut(trained(), text, cut, Place::begins), trained().encode(text, Place::begins))
          << text << " at " << cut;
    }
}

TEST(Tokenizer, DigestIsOfTheModel) {
  const TempDir folder;
  write_file(folder / "a.model", trained().files().at("tokenizer.model"));
  EXPECT_EQ(Tokenizer::load(folder / "a.model").digest(), trained().digest());
  EXPECT_NE(Tokenizer::from_model(Tokenizer::train(some_texts(), 350), "other").digest(), trained().digest());
}

TEST(Tokenizer, RefusesWhatIsNoModel) {
  const TempDir folder;
  EXPECT_ERROR(io, "none.model", Tokenizer::load(folder / "none.model"));
  write_file(folder / "foreign.model", "{\"model\": \"this is JSON\"}");
  EXPECT_ERROR(data, "foreign.model: not a SentencePiece model", Tokenizer::load(folder / "foreign.model"));
  EXPECT_ERROR(data, "not a SentencePiece model", Tokenizer::from_model("", "empty"));
  const std::string& whole = trained().files().at("tokenizer.model");
  EXPECT_ERROR(data, "not a SentencePiece model",
               Tokenizer::from_model(whole.substr(0, whole.size() / 2), "cut short"));
}

TEST(Tokenizer, RefusesModelsThatCannotBeCutAtSpaces) {
  EXPECT_NO_THROW(Tokenizer::from_model(trained_with({}), "fine"));
  EXPECT_ERROR(data, "drops spaces",
               Tokenizer::from_model(trained_with({{"remove_extra_whitespaces", "true"}}), "model"));
  EXPECT_ERROR(data, "goes on over a space",
               Tokenizer::from_model(trained_with({{"split_by_whitespace", "false"}}), "model"));
  EXPECT_ERROR(data, "has no BOS", Tokenizer::from_model(trained_with({{"bos_id", "-1"}}), "model"));
  EXPECT_ERROR(data, "has no EOS", Tokenizer::from_model(trained_with({{"eos_id", "-1"}}), "model"));
}

TEST(Tokenizer, TrainingNeedsTextAndRoomForIt) {
  EXPECT_ERROR(data, "no text to train", Tokenizer::train({}, 400));
  EXPECT_ERROR(data, "no text to train", Tokenizer::train({"", "  "}, 400));
  EXPECT_ERROR(usage, "data.tokenizer.vocabulary", Tokenizer::train(some_texts(), 262));
}

TEST(Tokenizer, ThreadsEncodeAlike) {
  std::vector<Tokens> tokens(400);
#pragma omp parallel for num_threads(4)
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = trained().encode(sample_texts[i % sample_texts.size()], i % 3 == 0 ? Place::begins : Place::goes_on);
  for (size_t i = 0; i < tokens.size(); ++i)
    EXPECT_EQ(tokens[i],
              trained().encode(sample_texts[i % sample_texts.size()], i % 3 == 0 ? Place::begins : Place::goes_on));
}

TEST(Tokenizer, LlamaGivesTheKnownIds) {
  NOTELLM_NEEDS_SHARED(llama_tokenizer);
  const Tokenizer t = Tokenizer::load(test::shared_path(llama_tokenizer));
  EXPECT_EQ(t.vocabulary(), 32001);
  EXPECT_EQ(t.encode("Hello world", Place::begins), (Tokens{15043, 3186}));
  EXPECT_EQ(t.encode(" world\n", Place::goes_on), (Tokens{3186, 13}));
}

TEST(WordEncoder, GivesWhatTheTokenizerGives) {
  WordEncoder encoder(trained());
  for (int round = 0; round < 2; ++round)  // the second time from memory
    for (const std::string& text : sample_texts)
      for (const Place place : {Place::begins, Place::after_token, Place::goes_on})
        EXPECT_EQ(encoder.encode(text, place), trained().encode(text, place)) << text;
}

// U+200B is a space once it is normalised; with the space behind it, it is one token, which a cut would part.
TEST(WordEncoder, GivesWhatATokenizerThatNormalisesGives) {
  const Tokenizer tokenizer = Tokenizer::from_model(
      trained_with({{"normalization_rule_name", "nmt_nfkc"}, {"allow_whitespace_only_pieces", "true"}},
                   {"a  b", "c  d", "a  d  c"}),
      "nmt");
  EXPECT_FALSE(tokenizer.cuts_at_spaces());
  const std::string text = "a\u200b b";
  const Tokens whole = tokenizer.encode(text, Place::goes_on);
  ASSERT_NE(encode_cut(tokenizer, text, text.find(' '), Place::goes_on), whole);
  EXPECT_EQ(WordEncoder(tokenizer).encode(text, Place::goes_on), whole);
}

TEST(WordEncoder, TruncatesBeforeASpace) {
  WordEncoder encoder(trained());
  const std::string text = "strategy game of ancient warfare";
  const std::string three = "strategy game of";
  const auto limit = static_cast<int64_t>(trained().encode(" " + three, Place::goes_on).size());
  EXPECT_EQ(encoder.truncate(text, true, limit), three);
  EXPECT_EQ(encoder.truncate(text, true, limit + trained().encode(" ancient", Place::goes_on).size()),
            three + " ancient");
  EXPECT_EQ(encoder.truncate(text, true, 100), text);
  EXPECT_EQ(encoder.truncate(text, true, 0), "");
  EXPECT_EQ(encoder.truncate("", true, 5), "");
}

TEST(WordEncoder, TruncatesInsideAWordWhereThereIsNoSpace) {
  WordEncoder encoder(trained());
  std::string han;  // each character is three byte tokens
  for (int i = 0; i < 50; ++i) han += "\xe7\xac\x94";
  EXPECT_EQ(encoder.truncate(han, false, 31), han.substr(0, 30));  // 10 characters and a third
  EXPECT_EQ(encoder.truncate(han, false, 2), "");
  // The only space stands near the beginning: more than half of the room would be lost.
  EXPECT_EQ(encoder.truncate("game " + han, true, 40).size() % 3, 5 % 3);
  EXPECT_GT(encoder.truncate("game " + han, true, 40).size(), 20);
}

TEST(WordEncoder, TruncationNeverExceedsTheLimit) {
  WordEncoder encoder(trained());
  for (const std::string& text : sample_texts)
    for (const bool after_space : {false, true})
      for (int64_t limit = 0; limit < 40; ++limit) {
        const std::string_view part = encoder.truncate(text, after_space, limit);
        EXPECT_EQ(part, text.substr(0, part.size()));
        std::string placed(after_space && !part.empty() ? 1 : 0, ' ');
        EXPECT_LE(std::ssize(trained().encode(placed.append(part), Place::goes_on)), limit) << text;
      }
}

// U+FB03, a ligature, is "ffi" once normalised, which is three tokens of this model.
TEST(WordEncoder, TruncationNeverExceedsTheLimitWhereTheModelNormalises) {
  const Tokenizer tokenizer =
      Tokenizer::from_model(trained_with({{"normalization_rule_name", "nfkc"}, {"vocab_size", "60"}}), "nfkc");
  WordEncoder encoder(tokenizer);
  std::string text;
  for (int i = 0; i < 10; ++i) text += "\xef\xac\x83";
  const auto each = std::ssize(tokenizer.encode(text, Place::goes_on)) / 10;
  ASSERT_GT(each, 1);
  for (int64_t limit = 0; limit < 10 * each; ++limit)
    EXPECT_EQ(encoder.truncate(text, false, limit), text.substr(0, 3 * (limit / each)));
}

}  // namespace
}  // namespace notellm

#include "data_pipeline/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>

#include "runtime/error.h"
#include "runtime/files.h"

namespace notellm {
namespace {

constexpr std::string_view emb_piece = "[EMB]";
constexpr std::string_view space_piece = "\xe2\x96\x81";  // U+2581, how pieces write a space

// Protocol buffers of the same type, one after the other, merge, and the later value of a field wins. These bytes are
// ModelProto{normalizer_spec{add_dummy_prefix: false}}: appended to a model they turn off the space that SentencePiece
// puts before a text. Release 0.1.97 has no other switch for it once a model is trained.
constexpr std::string_view no_dummy_prefix("\x1a\x02\x18\x00", 4);

void require(const sentencepiece::util::Status& status, const char* what) {
  if (!status.ok()) fail(ErrorKind::internal, "SentencePiece cannot {}: {}", what, status.ToString());
}

// Hands a list of texts to the trainer.
class TextIterator : public sentencepiece::SentenceIterator {
 public:
  explicit TextIterator(const std::vector<std::string>& texts) : texts_(texts) {}
  bool done() const override { return next_ == texts_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return texts_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& texts_;
  size_t next_ = 0;
};

// End of the first word of `text`: the spaces at its beginning belong to it.
size_t word_end(std::string_view text) {
  const size_t letter = text.find_first_not_of(' ');
  return letter == std::string_view::npos ? text.size() : std::min(text.find(' ', letter), text.size());
}

}  // namespace

void TokenizerConfig::fields(Fields& f) {
  f.add("model", "SentencePiece model file; empty: train one on the notes", model);
  f.add("vocabulary", "pieces of a trained model, special tokens and 256 bytes included", vocabulary,
        between(300, 1 << 20));
  f.add("training_texts", "at most that many texts of the notes are trained on", training_texts, at_least(1));
}

Tokenizer::Tokenizer()
    : begins_(std::make_unique<sentencepiece::SentencePieceProcessor>()),
      goes_on_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& path) { return from_model(read_file(path), path.string()); }

Tokenizer Tokenizer::from_model(std::string model, const std::string& name) {
  Tokenizer tokenizer;
  // An empty file parses as an empty protocol buffer.
  const auto status = tokenizer.begins_->LoadFromSerializedProto(model);
  if (!status.ok() || tokenizer.begins_->GetPieceSize() == 0)
    fail(ErrorKind::data, "{}: not a SentencePiece model (a Hugging Face folder has it as tokenizer.model)", name);
  require(tokenizer.goes_on_->LoadFromSerializedProto(model + std::string(no_dummy_prefix)), "load the model");
  tokenizer.bos_ = tokenizer.begins_->bos_id();
  tokenizer.eos_ = tokenizer.begins_->eos_id();
  tokenizer.emb_ = tokenizer.begins_->GetPieceSize();
  tokenizer.check(name);
  tokenizer.digest_ = checksum(fmt::format("{} {}", checksum(model), emb_piece));
  tokenizer.model_ = std::move(model);
  return tokenizer;
}

void Tokenizer::check(const std::string& name) const {
  if (bos_ < 0 || eos_ < 0)
    fail(ErrorKind::data, "{}: the model has no {} token; train it with one", name, bos_ < 0 ? "BOS" : "EOS");
  if (encode(" a", false) == encode("a", false))
    fail(ErrorKind::data,
         "{}: the model drops spaces (remove_extra_whitespaces); a prompt could not be put together "
         "from its parts; train one without this option",
         name);
  for (int32_t id = 0; id < emb_; ++id) {
    const std::string& piece = begins_->IdToPiece(id);
    size_t letter = 0;
    while (piece.compare(letter, space_piece.size(), space_piece) == 0) letter += space_piece.size();
    if (piece.find(space_piece, letter) != std::string::npos)
      fail(ErrorKind::data,
           "{}: piece {} (\"{}\") goes on over a space; a prompt's parts could not be cut at spaces; "
           "train the model with split_by_whitespace",
           name, id, piece);
  }
}

std::string Tokenizer::train(const std::vector<std::string>& texts, int vocabulary) {
  const auto has_text = [](const std::string& text) { return text.find_first_not_of(' ') != std::string::npos; };
  if (std::none_of(texts.begin(), texts.end(), has_text))
    fail(ErrorKind::data, "no text to train a tokenizer on; give a model in tokenizer.model");
  TextIterator iterator(texts);
  std::string model;
  // A small corpus may not hold as many pieces as asked for: then the vocabulary is smaller (hard_vocab_limit).
  const auto status = sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                                  {"vocab_size", std::to_string(vocabulary)},
                                                                  {"hard_vocab_limit", "false"},
                                                                  {"byte_fallback", "true"},
                                                                  {"character_coverage", "0.9995"},
                                                                  {"split_by_whitespace", "true"},
                                                                  {"normalization_rule_name", "identity"},
                                                                  {"remove_extra_whitespaces", "false"},
                                                                  {"unk_id", "0"},
                                                                  {"bos_id", "1"},
                                                                  {"eos_id", "2"},
                                                                  {"pad_id", "-1"},
                                                                  {"max_sentence_length", "1000000000"},
                                                                  {"num_threads", "1"},
                                                                  {"minloglevel", "2"}},
                                                                 &iterator, &model);
  if (!status.ok())
    fail(ErrorKind::usage,
         "tokenizer.vocabulary: no tokenizer of {} pieces can be trained on these texts; "
         "SentencePiece says: {}",
         vocabulary, status.ToString());
  return model;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool begins) const {
  std::vector<int32_t> tokens;
  require((begins ? begins_ : goes_on_)->Encode(text, &tokens), "encode a text");
  return tokens;
}

std::vector<size_t> Tokenizer::token_ends(std::string_view text) const {
  std::vector<size_t> ends;
  const auto encoded = goes_on_->EncodeAsImmutableProto(text);
  for (const auto& piece : encoded.pieces()) ends.push_back(piece.end());
  return ends;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool begins) const {
  std::string text;
  std::vector<int> run;  // of the model's own tokens
  const auto flush = [&] {
    std::string part;
    require((begins && text.empty() ? begins_ : goes_on_)->Decode(run, &part), "decode tokens");
    text += part;
    run.clear();
  };
  for (const int32_t token : tokens) {
    if (token < 0 || token > emb_)
      fail(ErrorKind::data, "token {} is outside the tokenizer's vocabulary of {}", token, vocabulary());
    if (token != emb_) {
      run.push_back(token);
      continue;
    }
    flush();
    text += emb_piece;
  }
  flush();
  return text;
}

std::string Tokenizer::piece(int32_t token) const {
  if (token < 0 || token > emb_)
    fail(ErrorKind::data, "token {} is outside the tokenizer's vocabulary of {}", token, vocabulary());
  return token == emb_ ? std::string(emb_piece) : begins_->IdToPiece(token);
}

std::span<const int32_t> WordEncoder::word(std::string_view text) {
  constexpr size_t longest_word = 64, most_words = 1 << 18;
  if (text.size() > longest_word) return rare_ = tokenizer_.encode(text, false);
  if (const auto known = words_.find(text); known != words_.end()) return known->second;
  if (words_.size() == most_words) words_.clear();
  return words_.emplace(text, tokenizer_.encode(text, false)).first->second;
}

void WordEncoder::encode(std::string_view text, bool begins, std::vector<int32_t>& out) {
  if (begins) {
    const size_t end = word_end(text);
    const auto first = tokenizer_.encode(text.substr(0, end), true);
    out.insert(out.end(), first.begin(), first.end());
    text.remove_prefix(end);
  }
  while (!text.empty()) {
    const size_t end = word_end(text);
    const auto tokens = word(text.substr(0, end));
    out.insert(out.end(), tokens.begin(), tokens.end());
    text.remove_prefix(end);
  }
}

std::string_view WordEncoder::truncate(std::string_view text, bool after_space, int64_t limit) {
  std::string first;  // the first word with the space before the text
  size_t cut = 0;
  int64_t count = 0;
  while (cut < text.size()) {
    const std::string_view rest = text.substr(cut);
    const size_t end = word_end(rest);
    const bool add_space = cut == 0 && after_space;
    if (add_space) first.assign(1, ' ').append(rest.substr(0, end));
    const std::string_view next = add_space ? std::string_view(first) : rest.substr(0, end);
    const int64_t tokens = static_cast<int64_t>(word(next).size());
    if (count + tokens > limit) {
      if (2 * count < limit) cut += std::max<size_t>(cut_word(next, limit - count), add_space) - add_space;
      break;
    }
    count += tokens;
    cut += end;
  }
  return text.substr(0, cut);
}

size_t WordEncoder::cut_word(std::string_view word, int64_t limit) const {
  // The text of the first tokens of a word gives these tokens again: what would have been merged over the cut was not
  // merged. Tokens of a character that is written as several end at its beginning, but the last.
  return limit > 0 ? tokenizer_.token_ends(word)[limit - 1] : 0;
}

}  // namespace notellm

// Text to tokens and back: a SentencePiece model and the extra token [EMB].
//
// The ids are those of the model; [EMB] is one id after them. Text is tokenised as Hugging Face's LlamaTokenizer
// (legacy: false) does it, except that "<s>", "</s>" and "[EMB]" in a text are text, never special tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/config.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace notellm {

struct TokenizerConfig {
  std::string model;           // file; empty: train one on the notes
  int vocabulary = 8192;       // of a trained model, [EMB] not counted
  int training_texts = 20000;  // notes, at most, whose prompts a model is trained on
  void fields(Fields& fields);
};

class Tokenizer {
 public:
  // Throws Error(io): no such file; Error(data): not a SentencePiece model; one without BOS or EOS; one that drops
  // spaces (remove_extra_whitespaces); one with pieces that go on over a space, as a prompt's parts are cut at spaces.
  static Tokenizer load(const std::filesystem::path& path);
  // The same from the bytes of the file; `name` stands for it in messages.
  static Tokenizer from_model(std::string model, const std::string& name);

  // A BPE model of at most `vocabulary` pieces as the bytes of its file: ids 0 unknown, 1 BOS, 2 EOS, then the 256
  // bytes, so that no character is unknown. Text is not normalised. The same texts give the same bytes. Uses memory of
  // about 10 times the texts. Throws Error(data): no text at all; Error(usage): a vocabulary too small for the
  // characters of the texts.
  static std::string train(const std::vector<std::string>& texts, int vocabulary);

  // begins: the text begins a sequence (after BOS), where SentencePiece puts a space before it if the model was trained
  // so. Else it goes on after a special token or after text that is cut at a space, and nothing is put before it.
  // Thread-safe.
  std::vector<int32_t> encode(std::string_view text, bool begins) const;
  // Byte in `text` (which goes on, see encode) at which each of its tokens ends. Where a character is written as
  // several tokens, they end at its beginning, but the last one, which ends behind it.
  std::vector<size_t> token_ends(std::string_view text) const;
  // The text of the tokens; BOS and EOS give nothing, [EMB] gives "[EMB]". `begins` as in encode: takes off the space
  // put before. Bytes that are no UTF-8 become U+FFFD. Throws Error(data): an id outside the vocabulary.
  std::string decode(std::span<const int32_t> tokens, bool begins) const;
  // One token as people read it: "▁world", "<0x0A>", "[EMB]".
  std::string piece(int32_t token) const;

  int32_t bos() const { return bos_; }
  int32_t eos() const { return eos_; }
  int32_t emb() const { return emb_; }
  int32_t vocabulary() const { return emb_ + 1; }  // ids in use, [EMB] included
  // Hash of the model file's bytes and of the added tokens.
  const std::string& digest() const { return digest_; }
  // The bytes of the model file.
  const std::string& model() const { return model_; }

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

 private:
  Tokenizer();
  void check(const std::string& name) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> begins_, goes_on_;
  std::string model_, digest_;
  int32_t bos_ = 0, eos_ = 0, emb_ = 0;
};

// Encodes many texts of the same language: remembers the tokens of words. Gives exactly what Tokenizer::encode gives,
// about ten times as fast, because no piece goes on over a space. One per thread. Memory: at most ~64 MB.
class WordEncoder {
 public:
  explicit WordEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Appends the tokens to `out`.
  void encode(std::string_view text, bool begins, std::vector<int32_t>& out);
  std::vector<int32_t> encode(std::string_view text, bool begins) {
    std::vector<int32_t> out;
    encode(text, begins, out);
    return out;
  }
  // The longest beginning of `text` that gives at most `limit` tokens when it goes on after a text (after_space: with a
  // space between, which belongs to the first word). Cut before a space, unless the last space lies in the first half
  // of those tokens: then between two tokens, at a whole character.
  std::string_view truncate(std::string_view text, bool after_space, int64_t limit);

  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  // The tokens of a word with the spaces before it; valid until the next call.
  std::span<const int32_t> word(std::string_view text);
  // The longest beginning of `word` of at most `limit` tokens, in bytes.
  size_t cut_word(std::string_view word, int64_t limit) const;

  const Tokenizer& tokenizer_;
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> words_;
  std::vector<int32_t> rare_;
};

}  // namespace notellm

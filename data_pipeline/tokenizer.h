// Text to tokens and back: a SentencePiece model, or a Hugging Face tokenizer.json, and the token [EMB].
//
// The ids are those of the file. [EMB] is one id after them, or the file's own where it has a special token "[EMB]".
//
// Special tokens in a text ("</s>", "<|endoftext|>", "[EMB]") are text, never special tokens: a note cannot end its
// prompt. The `tokenizers` library does the same with encode_special_tokens; without it, and so in transformers by
// default, a note that has such a text in it gets other tokens there. All other texts have the tokens that the library
// gives for the whole prompt, in which BOS, EOS and [EMB] are special tokens: BOS where the file puts one (LLaMA does,
// Qwen2 and GPT-2 do not). Bytes that are no UTF-8 count as U+FFFD.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data_pipeline/tokenizer_backend.h"
#include "runtime/config.h"

namespace notellm {

inline constexpr std::string_view emb_piece = "[EMB]";

struct TokenizerConfig {
  std::string model;           // file; empty: train one on the notes
  int vocabulary = 8192;       // of a trained model, [EMB] not counted
  int training_texts = 20000;  // notes, at most, whose prompts a model is trained on
  void fields(Fields& fields);
};

// The files that make a tokenizer: name → bytes. "tokenizer.model", or "tokenizer.json" and "tokenizer_config.json".
using TokenizerFiles = std::map<std::string, std::string>;

class Tokenizer {
 public:
  // A file that ends in .json is a tokenizer.json, with tokenizer_config.json beside it; any other a SentencePiece
  // model. Throws Error(io): a file that is missing; Error(data): as of SentencePieceTokenizer and of
  // read_tokenizer_json.
  static Tokenizer load(const std::filesystem::path& path);
  // The one that a folder of shards or a checkpoint holds, with the errors of read_tokenizer_files.
  static Tokenizer load_stored(const std::filesystem::path& folder);
  // The same from the bytes of the files; `name` stands for the folder or file in messages.
  static Tokenizer from_files(TokenizerFiles files, const std::string& name);
  // … of a SentencePiece model.
  static Tokenizer from_model(std::string model, const std::string& name);

  // A BPE model of at most `vocabulary` pieces as the bytes of its file: ids 0 unknown, 1 BOS, 2 EOS, then the 256
  // bytes, so that no character is unknown. Text is not normalised. The same texts give the same bytes. Uses memory of
  // about 10 times the texts. Throws Error(data): no text at all; Error(usage): a vocabulary too small for the
  // characters of the texts.
  static std::string train(const std::vector<std::string>& texts, int vocabulary);

  // Something is put before a text that begins a sequence, or stands after a special token, where the file says so (a
  // space, mostly). Thread-safe.
  std::vector<int32_t> encode(std::string_view text, Place place) const;
  // Byte in `text` (which goes on, see encode) at which each of its tokens ends. Where a character is written as
  // several tokens, they end at its beginning, but the last one, which ends behind it.
  std::vector<size_t> token_ends(std::string_view text) const;
  // The text of the tokens; special tokens give nothing, [EMB] gives "[EMB]". `place` as in encode: takes off what was
  // put before. Bytes that are no UTF-8 become U+FFFD. Throws Error(data): an id outside the vocabulary.
  std::string decode(std::span<const int32_t> tokens, Place place) const;
  // One token as people read it: "▁world", "Ġworld", "<0x0A>", "[EMB]".
  std::string piece(int32_t token) const;

  // A text that is cut before a space, after another character than white space or ▁, has the tokens of its parts, the
  // second of which goes on. So it is of SentencePiece models that do not normalise texts (with pieces that go on over
  // a space they are refused), and of a tokenizer.json where it can be shown. Where false, texts must be encoded as a
  // whole.
  bool cuts_at_spaces() const { return backend_->cuts_at_spaces(); }

  const char* kind() const { return backend_->kind(); }
  std::optional<int32_t> bos() const { return backend_->bos(); }  // none: nothing stands before a text
  int32_t eos() const { return backend_->eos(); }
  int32_t emb() const { return emb_; }
  bool has_own_emb() const { return backend_->emb().has_value(); }             // it is a token of the file
  int32_t vocabulary() const { return std::max(backend_->size(), emb_ + 1); }  // ids in use, [EMB] included
  // Hash of the files' bytes and of [EMB].
  const std::string& digest() const { return digest_; }
  const TokenizerFiles& files() const { return files_; }

 private:
  Tokenizer() = default;
  void require_token(int32_t token) const;

  std::unique_ptr<const TokenizerBackend> backend_;
  TokenizerFiles files_;
  std::string digest_;
  int32_t emb_ = 0;
};

// The files that Tokenizer::load(path) reads.
std::vector<std::filesystem::path> tokenizer_inputs(const std::filesystem::path& path);
// The files of the tokenizer that a folder of shards or a checkpoint holds. Throws Error(io) where one is missing.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder);
// All names that these files may have.
inline constexpr const char* tokenizer_file_names[] = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"};

}  // namespace notellm

// A tokenizer.json as a tokenizer: added tokens, normaliser, pre-tokenizer, BPE, decoder.
//
// Texts get the tokens that the `tokenizers` library gives with encode_special_tokens: added tokens that are not
// special are cut out of a text, special ones in a text are text.
#pragma once

#include "data_pipeline/tokenizer_backend.h"
#include "data_pipeline/tokenizer_json.h"

namespace notellm {

class JsonTokenizer : public TokenizerBackend {
 public:
  // Arguments and errors as of read_tokenizer_json.
  JsonTokenizer(const std::string& json, const std::string& name, const std::string& config,
                const std::string& config_name);

  void encode(std::string_view text, Place place, std::vector<int32_t>& out) const override;
  std::vector<size_t> token_ends(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens, Place place) const override;
  std::string piece(int32_t token) const override { return pieces_[token]; }
  bool cuts_at_spaces() const override { return cuts_at_spaces_; }

  const char* kind() const override { return "tokenizer.json (BPE)"; }
  int32_t size() const override { return spec_.size; }
  std::optional<int32_t> bos() const override { return spec_.bos; }
  int32_t eos() const override { return spec_.eos; }
  std::optional<int32_t> emb() const override { return emb_; }

 private:
  struct Output;  // the tokens, and where they end
  void encode_all(std::string_view text, Place place, Output& out) const;
  // Both count ends from `begin`. `text_begin`: where the text begins, counted from the same byte as `begin`.
  void encode_section(std::string_view text, size_t begin, PreTokenizer::Before before, Output& out) const;
  void encode_normalized(MappedText& text, size_t begin, size_t text_begin, PreTokenizer::Before before,
                         Output& out) const;
  bool find_cuts_at_spaces() const;

  TokenizerSpec spec_;
  std::vector<std::string> pieces_;  // by id
  std::vector<bool> special_;        // by id
  std::optional<int32_t> emb_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  AddedTokenFinder in_original_, in_normalized_;
  bool normalizer_prepends_ = false, cuts_at_spaces_ = false;
};

}  // namespace notellm

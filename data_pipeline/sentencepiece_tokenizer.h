// A SentencePiece model as a tokenizer. Texts are tokenised as Hugging Face's LlamaTokenizer (legacy: false) does it,
// except that "<s>" and "</s>" in a text are text.
#pragma once

#include <sentencepiece_processor.h>

#include "data_pipeline/tokenizer_backend.h"

namespace notellm {

class SentencePieceTokenizer : public TokenizerBackend {
 public:
  // Throws Error(data): not a SentencePiece model; one without BOS or EOS; one that drops spaces
  // (remove_extra_whitespaces); one with pieces that go on over a space.
  SentencePieceTokenizer(const std::string& model, const std::string& name);

  void encode(std::string_view text, Place place, std::vector<int32_t>& out) const override;
  std::vector<size_t> token_ends(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens, Place place) const override;
  std::string piece(int32_t token) const override { return begins_.IdToPiece(token); }
  bool cuts_at_spaces() const override { return cuts_at_spaces_; }

  const char* kind() const override { return "SentencePiece model"; }
  int32_t size() const override { return begins_.GetPieceSize(); }
  std::optional<int32_t> bos() const override { return begins_.bos_id(); }
  int32_t eos() const override { return begins_.eos_id(); }
  std::optional<int32_t> emb() const override { return std::nullopt; }

 private:
  void check(const std::string& name) const;
  bool keeps_texts() const;
  sentencepiece::SentencePieceProcessor begins_, goes_on_;
  bool cuts_at_spaces_ = false;
};

}  // namespace notellm

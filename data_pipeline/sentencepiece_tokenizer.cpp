#include "data_pipeline/sentencepiece_tokenizer.h"

#include "runtime/error.h"

namespace notellm {
namespace {

constexpr std::string_view space_piece = "\xe2\x96\x81";  // U+2581, how pieces write a space

// Protocol buffers of the same type, one after the other, merge, and the later value of a field wins. These bytes are
// ModelProto{normalizer_spec{add_dummy_prefix: false}}: appended to a model they turn off the space that SentencePiece
// puts before a text. Release 0.1.97 has no other switch for it once a model is trained.
constexpr std::string_view no_dummy_prefix("\x1a\x02\x18\x00", 4);

void require(const sentencepiece::util::Status& status, const char* what) {
  if (!status.ok()) fail(ErrorKind::internal, "SentencePiece cannot {}: {}", what, status.ToString());
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(const std::string& model, const std::string& name) {
  // An empty file parses as an empty protocol buffer.
  const auto status = begins_.LoadFromSerializedProto(model);
  if (!status.ok() || begins_.GetPieceSize() == 0)
    fail(ErrorKind::data, "{}: not a SentencePiece model (a Hugging Face folder has it as tokenizer.model)", name);
  require(goes_on_.LoadFromSerializedProto(model + std::string(no_dummy_prefix)), "load the model");
  check(name);
  cuts_at_spaces_ = keeps_texts();
}

// Whether the model's normalisation leaves texts as they are: others (NMT's, NFKC) make spaces of characters that are
// no white space, or take some out before one.
bool SentencePieceTokenizer::keeps_texts() const {
  const std::string probe = "a\u200b b\u0001 c\ufeff \ufb01 \uff21\u0301\u2000d";
  std::vector<int32_t> tokens;
  encode(probe, Place::goes_on, tokens);
  return decode(tokens, Place::goes_on) == probe;
}

void SentencePieceTokenizer::check(const std::string& name) const {
  if (begins_.bos_id() < 0 || begins_.eos_id() < 0)
    fail(ErrorKind::data, "{}: the model has no {} token; train it with one", name,
         begins_.bos_id() < 0 ? "BOS" : "EOS");
  std::vector<int32_t> spaced, plain;
  encode(" a", Place::goes_on, spaced);
  encode("a", Place::goes_on, plain);
  if (spaced == plain)
    fail(ErrorKind::data,
         "{}: the model drops spaces (remove_extra_whitespaces); a prompt could not be put together "
         "from its parts; train one without this option",
         name);
  for (int32_t id = 0; id < size(); ++id) {
    const std::string& piece = begins_.IdToPiece(id);
    size_t letter = 0;
    while (piece.compare(letter, space_piece.size(), space_piece) == 0) letter += space_piece.size();
    if (piece.find(space_piece, letter) != std::string::npos)
      fail(ErrorKind::data,
           "{}: piece {} (\"{}\") goes on over a space; a prompt's parts could not be cut at spaces; "
           "train the model with split_by_whitespace",
           name, id, piece);
  }
}

void SentencePieceTokenizer::encode(std::string_view text, Place place, std::vector<int32_t>& out) const {
  std::vector<int32_t> tokens;
  require((place == Place::begins ? begins_ : goes_on_).Encode(text, &tokens), "encode a text");
  out.insert(out.end(), tokens.begin(), tokens.end());
}

std::vector<size_t> SentencePieceTokenizer::token_ends(std::string_view text) const {
  std::vector<size_t> ends;
  const auto encoded = goes_on_.EncodeAsImmutableProto(text);
  for (const auto& piece : encoded.pieces()) ends.push_back(piece.end());
  return ends;
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> tokens, Place place) const {
  std::string text;
  require((place == Place::begins ? begins_ : goes_on_).Decode(std::vector<int>(tokens.begin(), tokens.end()), &text),
          "decode tokens");
  return text;
}

}  // namespace notellm

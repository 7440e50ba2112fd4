#include "data_pipeline/json_tokenizer.h"

#include <algorithm>
#include <unordered_set>

#include "data_pipeline/tokenizer.h"
#include "runtime/error.h"
#include "runtime/utf8.h"

namespace notellm {
namespace {

using Before = PreTokenizer::Before;

std::vector<int32_t> specials_of(const TokenizerSpec& spec) {
  std::vector<int32_t> ids;
  for (const AddedToken& token : spec.added)
    if (token.special) ids.push_back(token.id);
  return ids;
}

// The added tokens that are looked for in the original text, or those in the normalised one, by their own normal form.
std::vector<AddedToken> tokens_in(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : spec.added) {
    if (token.normalized != normalized) continue;
    if (normalized) {
      MappedText content(token.content, false);
      normalize(spec.normalizer, true, content);
      token.content = content.text();
    }
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

Before before_of(Place place) {
  return place == Place::begins ? Before::nothing : place == Place::after_token ? Before::token : Before::text;
}

// `mark` stands in `text` after something else than it.
bool goes_over(std::string_view text, std::string_view mark) {
  while (text.starts_with(mark)) text.remove_prefix(mark.size());
  return text.find(mark) != std::string_view::npos;
}

}  // namespace

struct JsonTokenizer::Output {
  std::vector<int32_t>& ids;
  std::vector<size_t>* ends = nullptr;  // bytes of the text that are used up after each token
  std::vector<uint32_t> lengths = {};   // of the tokens of a piece

  void add(int32_t id, size_t end) {
    ids.push_back(id);
    if (ends) ends->push_back(end);
  }
};

JsonTokenizer::JsonTokenizer(const std::string& json, const std::string& name, const std::string& config,
                             const std::string& config_name)
    : spec_(read_tokenizer_json(json, name, config, config_name)),
      pieces_(spec_.bpe.pieces),
      special_(static_cast<size_t>(spec_.size)),
      pre_tokenizer_(spec_.pre_tokenizer, name + ": .pre_tokenizer"),
      bpe_(spec_.bpe, spec_.pre_tokenizer.last == PreTokenizerSpec::Last::byte_level, specials_of(spec_)),
      in_original_(tokens_in(spec_, false)),
      in_normalized_(tokens_in(spec_, true)) {
  std::unordered_set<std::string> contents;
  for (const AddedToken& token : tokens_in(spec_, true))
    if (!contents.insert(token.content).second)
      fail(ErrorKind::data, "{}: two added tokens are {} after normalisation, which is not supported", name,
           token.content);
  pieces_.resize(static_cast<size_t>(spec_.size));
  for (const AddedToken& token : spec_.added) {
    pieces_[token.id] = token.content;
    special_[token.id] = token.special;
    if (token.content == emb_piece) emb_ = token.id;
  }
  const auto emb = std::ranges::find(pieces_, emb_piece);
  if (emb != pieces_.end() && (!emb_ || !special_[*emb_]))
    fail(ErrorKind::data, "{}: has a token {} that is not a special token; make it one", name, emb_piece);
  for (const NormalizerStep& step : spec_.normalizer)
    normalizer_prepends_ = normalizer_prepends_ || step.kind == NormalizerStep::Kind::prepend;
  cuts_at_spaces_ = find_cuts_at_spaces();
  spec_.bpe = {};  // bpe_ and pieces_ have what is needed of it
}

// A text that is cut at a space after another character than white space or ▁ has the tokens of its parts when each
// stage only adds a cut there. NFC does: nothing is composed with a space. `mark` is what a space is for the model.
bool JsonTokenizer::find_cuts_at_spaces() const {
  MappedText space(" ", false);
  normalize(spec_.normalizer, false, space);
  pre_tokenizer_.prepare(space);
  const bool byte_level = spec_.pre_tokenizer.last == PreTokenizerSpec::Last::byte_level;
  const std::string mark = byte_level && space.text() == " " ? "\xc4\xa0" : space.text();
  if (mark != " " && mark != "\xe2\x96\x81" && mark != "\xc4\xa0") return false;
  for (const NormalizerStep& step : spec_.normalizer)
    if (step.kind == NormalizerStep::Kind::replace && step.pattern != " ") return false;
  const PreTokenizerSpec& pre = spec_.pre_tokenizer;
  if (space.text() != " " && (!pre.splits.empty() || pre.use_regex)) return false;  // is_local asks for spaces
  for (const bool normalized : {false, true}) {
    if ((normalized ? in_normalized_ : in_original_).finds_none()) continue;
    if (normalizer_prepends_ || pre_tokenizer_.prepends(Before::token)) return false;
    for (const AddedToken& token : tokens_in(spec_, normalized))
      if (token.rstrip || token.single_word || goes_over(token.content, " ") || goes_over(token.content, space.text()))
        return false;
  }
  if (!pre_tokenizer_.is_local()) return false;
  if (pre_tokenizer_.splits_at_spaces()) return true;
  const bool fuses = spec_.bpe.fuse_unknown && !spec_.bpe.byte_fallback && !byte_level;
  return !spec_.bpe.ignore_merges && !fuses && std::ranges::none_of(spec_.bpe.merges, [&](const BpeSpec::Merge& merge) {
    return goes_over(spec_.bpe.pieces[merge.result], mark);
  });
}

void JsonTokenizer::encode(std::string_view text, Place place, std::vector<int32_t>& out) const {
  Output output{out};
  encode_all(text, place, output);
}

void JsonTokenizer::encode_all(std::string_view text, Place place, Output& out) const {
  const Before before = before_of(place);
  if (in_original_.finds_none()) return encode_section(text, 0, before, out);
  in_original_.split(text, [&](size_t begin, size_t end, int32_t id) {
    if (id >= 0) return out.add(id, end);
    encode_section(text.substr(begin, end - begin), begin, begin == 0 ? before : Before::token, out);
  });
}

void JsonTokenizer::encode_section(std::string_view text, size_t begin, Before before, Output& out) const {
  MappedText mapped(text, out.ends != nullptr);
  normalize(spec_.normalizer, before != Before::text, mapped);
  if (in_normalized_.finds_none()) return encode_normalized(mapped, begin, begin, before, out);
  in_normalized_.split(mapped.text(), [&](size_t from, size_t to, int32_t id) {
    if (id >= 0) return out.add(id, out.ends ? begin + mapped.ends()[to - 1] : 0);
    MappedText part = mapped.part(from, to);
    const size_t part_begin = out.ends && from > 0 ? begin + mapped.ends()[from - 1] : begin;
    encode_normalized(part, begin, part_begin, from == 0 ? before : Before::token, out);
  });
}

void JsonTokenizer::encode_normalized(MappedText& text, size_t begin, size_t text_begin, Before before,
                                      Output& out) const {
  pre_tokenizer_.prepare(text);
  pre_tokenizer_.split(text.text(), before, [&](std::string_view piece, size_t piece_end) {
    if (!out.ends) return bpe_.encode(piece, out.ids, nullptr);
    out.lengths.clear();
    bpe_.encode(piece, out.ids, &out.lengths);
    // What was put before the text stands before its byte 0.
    auto at = static_cast<int64_t>(piece_end) - static_cast<int64_t>(piece.size());
    for (const uint32_t length : out.lengths) {
      at += length;
      out.ends->push_back(at <= 0 ? text_begin : begin + text.ends()[at - 1]);
    }
  });
}

std::vector<size_t> JsonTokenizer::token_ends(std::string_view text) const {
  std::vector<int32_t> ids;
  std::vector<size_t> ends;
  Output output{ids, &ends};
  encode_all(text, Place::goes_on, output);
  // An added token of white space is found again in what another one (rstrip) has taken, as the library does it.
  size_t last = 0;
  for (size_t& end : ends) {
    while (end > 0 && end < text.size() && !begins_character(text[end])) --end;
    end = last = std::max(last, end);
  }
  return ends;
}

std::string JsonTokenizer::decode(std::span<const int32_t> tokens, Place place) const {
  const Before before = before_of(place);
  const bool had_prefix = (normalizer_prepends_ && before != Before::text) || pre_tokenizer_.prepends(before);
  std::vector<std::string> texts;
  for (const int32_t token : tokens)
    if (!special_[token]) texts.push_back(pieces_[token]);
  return decode_tokens(spec_.decoder, had_prefix, std::move(texts));
}

}  // namespace notellm

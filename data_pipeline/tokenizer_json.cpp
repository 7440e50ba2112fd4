#include "data_pipeline/tokenizer_json.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "data_pipeline/byte_letters.h"
#include "data_pipeline/json_node.h"
#include "runtime/utf8.h"

namespace notellm {
namespace {

using Ids = std::unordered_map<std::string, int32_t>;

constexpr int64_t most_ids = 1 << 24;
constexpr size_t most_steps = 64;  // of a pipeline; a template has fewer tokens too

// A node that is one step or a Sequence of steps, as a list of steps. A Sequence may hold others.
void flatten(const JsonNode& node, std::string_view list_key, int depth, std::vector<JsonNode>& steps) {
  if (node.at("type").text() != "Sequence") {
    steps.push_back(node);
    node.require(steps.size() <= most_steps, fmt::format("up to {} steps", most_steps));
    return;
  }
  node.only({"type", list_key});
  node.require(depth < 8, "sequences nested up to 8 deep");
  for (const JsonNode& step : node.at(list_key).list()) flatten(step, list_key, depth + 1, steps);
}
std::vector<JsonNode> steps_of(const std::optional<JsonNode>& node, std::string_view list_key) {
  std::vector<JsonNode> steps;
  if (node) flatten(*node, list_key, 0, steps);
  return steps;
}

// {"String": …} as text; {"Regex": …} where it may be one.
std::string pattern_of(const JsonNode& node, bool* literal) {
  node.only({"String", "Regex"});
  const auto text = node.find("String"), regex = node.find("Regex");
  node.require(text.has_value() != regex.has_value() && (literal || text),
               literal ? "a String or a Regex" : "a String");
  const std::string pattern = (text ? text : regex)->text();
  node.require(!pattern.empty(), "a pattern that is not empty");
  if (literal) *literal = text.has_value();
  return pattern;
}

std::string mark_of(const JsonNode& node) {
  const std::string mark = node.at("replacement").text();
  node.at("replacement").require(count_characters(mark) == 1 && mark != " ", "a character other than the space");
  return mark;
}

std::vector<NormalizerStep> read_normalizer(const std::optional<JsonNode>& node) {
  std::vector<NormalizerStep> normalizer;
  for (const JsonNode& step : steps_of(node, "normalizers")) {
    const std::string type = step.at("type").text();
    if (type == "NFC") {
      step.only({"type"});
      normalizer.push_back({NormalizerStep::Kind::nfc, {}, {}});
    } else if (type == "Prepend") {
      step.only({"type", "prepend"});
      normalizer.push_back({NormalizerStep::Kind::prepend, {}, step.at("prepend").text()});
    } else if (type == "Replace") {
      step.only({"type", "pattern", "content"});
      normalizer.push_back(
          {NormalizerStep::Kind::replace, pattern_of(step.at("pattern"), nullptr), step.at("content").text()});
    } else {
      step.at("type").unsupported("NFC, Prepend, Replace, Sequence");
    }
  }
  return normalizer;
}

SplitStep read_split(const JsonNode& step) {
  static const std::pair<const char*, SplitBehavior> behaviors[] = {
      {"Removed", SplitBehavior::removed},
      {"Isolated", SplitBehavior::isolated},
      {"MergedWithPrevious", SplitBehavior::merged_with_previous},
      {"MergedWithNext", SplitBehavior::merged_with_next},
      {"Contiguous", SplitBehavior::contiguous}};
  step.only({"type", "pattern", "behavior", "invert"});
  SplitStep split;
  split.pattern = pattern_of(step.at("pattern"), &split.literal);
  split.invert = step.at("invert").flag();
  const std::string behavior = step.at("behavior").text();
  const auto known = std::ranges::find(behaviors, behavior, [](const auto& b) { return std::string(b.first); });
  step.at("behavior")
      .require(known != std::end(behaviors), "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  split.behavior = known->second;
  return split;
}

// Of Metaspace, as pre-tokenizer and as decoder.
PrependScheme read_prepend_scheme(const JsonNode& step) {
  step.only({"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  const auto scheme = step.find("prepend_scheme");
  const std::string name = scheme ? scheme->text() : "always";
  PrependScheme prepend = name == "always"  ? PrependScheme::always
                          : name == "first" ? PrependScheme::first
                                            : PrependScheme::never;
  if (scheme) scheme->require(name == "always" || name == "first" || name == "never", "always, first, never");
  // What older files say instead of prepend_scheme.
  const auto older = step.find("add_prefix_space");
  if (older && !scheme && !older->flag()) prepend = PrependScheme::never;
  if (older) older->require(older->flag() == (prepend != PrependScheme::never), "the same as prepend_scheme");
  return prepend;
}

void read_metaspace(const JsonNode& step, PreTokenizerSpec& spec) {
  spec.last = PreTokenizerSpec::Last::metaspace;
  spec.replacement = mark_of(step);
  spec.split = step.flag_or("split", true);
  spec.prepend = read_prepend_scheme(step);
}

PreTokenizerSpec read_pre_tokenizer(const std::optional<JsonNode>& node) {
  PreTokenizerSpec spec;
  for (const JsonNode& step : steps_of(node, "pretokenizers")) {
    const std::string type = step.at("type").text();
    step.require(spec.last == PreTokenizerSpec::Last::none, "ByteLevel or Metaspace as the last step only");
    if (type == "Split") {
      spec.splits.push_back(read_split(step));
    } else if (type == "Digits") {
      step.only({"type", "individual_digits"});
      spec.splits.push_back(SplitStep::digits(step.at("individual_digits").flag()));
    } else if (type == "ByteLevel") {
      step.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      spec.last = PreTokenizerSpec::Last::byte_level;
      spec.add_prefix_space = step.at("add_prefix_space").flag();
      spec.use_regex = step.flag_or("use_regex", true);
    } else if (type == "Metaspace") {
      step.require(spec.splits.empty(), "Metaspace without other steps");
      read_metaspace(step, spec);
    } else {
      step.at("type").unsupported("Split, Digits, ByteLevel, Metaspace, Sequence");
    }
  }
  return spec;
}

// prepended: whether a space is put before texts, which decoding takes off again.
std::vector<DecoderStep> read_decoder(const JsonNode& node, bool prepended) {
  using Kind = DecoderStep::Kind;
  constexpr const char* supported = "ByteLevel, ByteFallback, Metaspace, Fuse, Strip, Replace, Sequence";
  node.require(!node.is_null(), supported);
  std::vector<DecoderStep> decoder;
  for (const JsonNode& step : steps_of(node, "decoders")) {
    const std::string type = step.at("type").text();
    if (type == "ByteLevel") {
      step.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      decoder.push_back({Kind::byte_level, {}, {}});
    } else if (type == "ByteFallback" || type == "Fuse") {
      step.only({"type"});
      decoder.push_back({type == "Fuse" ? Kind::fuse : Kind::byte_fallback, {}, {}});
    } else if (type == "Metaspace") {
      step.require((read_prepend_scheme(step) != PrependScheme::never) == prepended,
                   "a prepend_scheme that takes off what was put before the text");
      decoder.push_back({Kind::metaspace, mark_of(step), {}});
    } else if (type == "Strip") {
      step.only({"type", "content", "start", "stop"});
      const std::string content = step.at("content").text();
      step.at("content").require(count_characters(content) == 1, "a character");
      decoder.push_back({Kind::strip, content, {}, step.at("start").number(), step.at("stop").number()});
    } else if (type == "Replace") {
      step.only({"type", "pattern", "content"});
      decoder.push_back({Kind::replace, pattern_of(step.at("pattern"), nullptr), step.at("content").text()});
    } else {
      step.at("type").unsupported(supported);
    }
  }
  return decoder;
}

Ids read_vocabulary(const JsonNode& node, std::vector<std::string>& pieces) {
  node.require(node.json().is_object() && !node.json().empty(), "an object of pieces and ids");
  const size_t n = node.json().size();
  node.require(n <= most_ids, fmt::format("up to {} pieces", most_ids));
  Ids ids;
  ids.reserve(n);
  pieces.resize(n);
  std::vector<bool> taken(n);
  for (const auto& [piece, id] : node.json().items()) {
    const JsonNode entry = node.at(piece);
    const int64_t number = entry.number();
    if (number < 0 || number >= static_cast<int64_t>(n) || taken[number])
      entry.unsupported(fmt::format("ids 0 to {} for the {} pieces, each once", n - 1, n));
    taken[number] = true;
    pieces[number] = piece;
    ids.emplace(piece, static_cast<int32_t>(number));
  }
  return ids;
}

// "left right" in older files, ["left", "right"] in newer ones.
std::pair<std::string, std::string> read_pair(const JsonNode& merge) {
  if (merge.json().is_array()) {
    const auto pair = merge.list();
    merge.require(pair.size() == 2, "pairs of pieces");
    return {pair[0].text(), pair[1].text()};
  }
  const std::string text = merge.text();
  const size_t space = text.find(' ');
  merge.require(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
                "two pieces with a space between");
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const JsonNode& node, const Ids& ids, BpeSpec& bpe) {
  std::unordered_set<uint64_t> seen;
  for (const JsonNode& merge : node.list()) {
    const auto [left, right] = read_pair(merge);
    const auto l = ids.find(left), r = ids.find(right), result = ids.find(left + right);
    if (l == ids.end() || r == ids.end() || result == ids.end())
      merge.wrong("but one of the two, or what they give, is not in model.vocab");
    if (!seen.insert(static_cast<uint64_t>(l->second) << 32 | static_cast<uint32_t>(r->second)).second)
      merge.wrong("which stands twice in the list");
    bpe.merges.push_back({l->second, r->second, result->second});
  }
}

// Whether a byte is in texts of other characters than rare control ones, and those of planes 4 and beyond, where none
// is but flags' tags and private ones: SmolLM's vocabularies have no such bytes.
bool is_common(int byte) {
  const bool control = byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r';
  return !control && byte != 0x7F && byte != 0xC0 && byte != 0xC1 && byte <= 0xF0;
}

// Every character must give a token, but for rare ones of a byte-level vocabulary.
void check_coverage(const JsonNode& model, bool byte_level, const Ids& ids, const BpeSpec& bpe) {
  if (byte_level) {
    std::vector<bool> found(256);
    for (const std::string& piece : bpe.pieces)
      if (const auto bytes = bytes_of_letters(piece); bytes && bytes->size() == 1)
        found[static_cast<unsigned char>((*bytes)[0])] = true;
    for (int byte = 0; byte < 256; ++byte)
      model.at("vocab").require(
          found[byte] || bpe.unknown || !is_common(byte),
          fmt::format("a byte-level vocabulary with all bytes of common characters; 0x{:02X} is missing", byte));
  } else if (bpe.byte_fallback) {
    for (int byte = 0; byte < 256; ++byte)
      model.at("vocab").require(ids.contains(fmt::format("<0x{:02X}>", byte)),
                                fmt::format("byte_fallback with all bytes; <0x{:02X}> is missing", byte));
  } else {
    model.at("vocab").require(bpe.unknown.has_value(),
                              "an unk_token, byte_fallback or the pre-tokenizer ByteLevel; without one of them "
                              "characters would be dropped");
  }
}

BpeSpec read_model(const JsonNode& model, bool byte_level, Ids& ids) {
  // The oldest files of GPT-2 have no type.
  if (const auto type = model.find("type")) type->require(type->text() == "BPE", "BPE");
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (const auto dropout = model.find("dropout"))
    dropout->require(dropout->json().is_number() && dropout->json().get<double>() == 0, "null, 0");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto affix = model.find(key)) affix->require(affix->text().empty(), "null, \"\"");
  BpeSpec bpe;
  bpe.fuse_unknown = model.flag_or("fuse_unk", false);
  bpe.byte_fallback = model.flag_or("byte_fallback", false);
  bpe.ignore_merges = model.flag_or("ignore_merges", false);
  model.require(!byte_level || !bpe.byte_fallback, "either byte_fallback or the pre-tokenizer ByteLevel");
  ids = read_vocabulary(model.at("vocab"), bpe.pieces);
  if (const auto unknown = model.find("unk_token")) {
    const auto found = ids.find(unknown->text());
    unknown->require(found != ids.end(), "a piece of model.vocab");
    bpe.unknown = found->second;
  }
  read_merges(model.at("merges"), ids, bpe);
  check_coverage(model, byte_level, ids, bpe);
  return bpe;
}

// Adds the tokens that are not pieces to `ids`, and checks that all ids are what the `tokenizers` library gives them.
std::vector<AddedToken> read_added(const std::optional<JsonNode>& node, Ids& ids) {
  std::vector<AddedToken> added;
  if (!node) return added;
  std::unordered_set<std::string> seen;
  for (const JsonNode& entry : node->list()) {
    entry.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.content = entry.at("content").text();
    entry.require(!token.content.empty(), "a token that is not empty");
    if (!seen.insert(token.content).second) entry.wrong("which stands twice in the list");
    const auto [known, is_new] = ids.emplace(token.content, static_cast<int32_t>(ids.size()));
    token.id = known->second;
    if (entry.at("id").number() != token.id)
      entry.wrong(fmt::format("but its id must be {}, {}", token.id,
                              is_new ? "the next one after those of the tokens before" : "as in model.vocab"));
    token.single_word = entry.at("single_word").flag();
    token.lstrip = entry.at("lstrip").flag();
    token.rstrip = entry.at("rstrip").flag();
    token.normalized = entry.at("normalized").flag();
    token.special = entry.at("special").flag();
    added.push_back(std::move(token));
  }
  return added;
}

// The special tokens around the text that the post-processor adds.
struct Surroundings {
  std::vector<int32_t> before, after;
};

void read_template(const JsonNode& step, const Ids& ids, Surroundings& around) {
  step.only({"type", "single", "pair", "special_tokens"});
  bool behind = false;
  const std::vector<JsonNode> parts = step.at("single").list();
  step.at("single").require(parts.size() <= most_steps, fmt::format("up to {} parts", most_steps));
  for (const JsonNode& part : parts) {
    part.only({"SpecialToken", "Sequence"});
    part.require(!part.find("SpecialToken") || !part.find("Sequence"), "either a SpecialToken or a Sequence");
    if (const auto sequence = part.find("Sequence")) {
      sequence->only({"id", "type_id"});
      part.require(!behind && sequence->at("id").text() == "A", "the sequence A, once");
      behind = true;
      continue;
    }
    const std::string name = part.at("SpecialToken").at("id").text();
    const JsonNode special = step.at("special_tokens").at(name);
    special.only({"id", "ids", "tokens"});
    const std::vector<JsonNode> numbers = special.at("ids").list();
    special.at("ids").require(numbers.size() == 1, "one id");
    const JsonNode& id = numbers[0];
    const auto found = std::ranges::find(ids, id.number(), [](const auto& entry) { return int64_t{entry.second}; });
    id.require(found != ids.end(), "the id of a token");
    (behind ? around.after : around.before).push_back(found->second);
  }
  step.at("single").require(behind, "a template with the sequence A");
}

Surroundings read_post_processor(const std::optional<JsonNode>& node, const Ids& ids) {
  Surroundings around;
  bool has_template = false;
  for (const JsonNode& step : steps_of(node, "processors")) {
    const std::string type = step.at("type").text();
    if (type == "ByteLevel") {  // of offsets, which nothing here uses
      step.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    } else if (type == "TemplateProcessing") {
      step.require(!has_template, "one TemplateProcessing");
      has_template = true;
      read_template(step, ids, around);
    } else {
      step.at("type").unsupported("TemplateProcessing, ByteLevel, Sequence");
    }
  }
  return around;
}

// A token of tokenizer_config.json: a text, or an object with its content.
std::optional<std::string> named_token(const JsonNode& config, std::string_view key) {
  const auto token = config.find(key);
  if (!token) return std::nullopt;
  return token->json().is_object() ? token->at("content").text() : token->text();
}

void read_ends(const JsonNode& root, const JsonNode& config, const Ids& ids, TokenizerSpec& spec) {
  const auto special_id = [&](std::string_view key, const std::string& content) {
    const auto token = std::ranges::find(spec.added, content, &AddedToken::content);
    config.at(key).require(token != spec.added.end() && token->special, "a special token of tokenizer.json");
    return token->id;
  };
  const auto eos = named_token(config, "eos_token");
  if (!eos) config.wrong("which does not say what token ends a text; give it an eos_token");
  spec.eos = special_id("eos_token", *eos);
  const Surroundings around = read_post_processor(root.find("post_processor"), ids);
  const JsonNode post_processor = around.before.empty() && around.after.empty() ? root : root.at("post_processor");
  post_processor.require(around.before.size() <= 1, "one token before a text");
  const bool only_eos = around.after.empty() || (around.after.size() == 1 && around.after[0] == spec.eos);
  post_processor.require(only_eos, fmt::format("no token after a text but the eos_token {}", *eos));
  if (!around.before.empty()) spec.bos = around.before[0];
  const auto bos = named_token(config, "bos_token");
  if (spec.bos && bos && special_id("bos_token", *bos) != *spec.bos)
    config.at("bos_token").wrong("but tokenizer.json puts another token before a text");
  if (const auto adds = config.find("add_bos_token"); adds && adds->flag() != spec.bos.has_value())
    adds->wrong(fmt::format("but the post_processor of tokenizer.json puts {} before a text",
                            spec.bos ? "a token" : "no token"));
}

// A text must never become a special token, nor what is unknown the one that ends texts.
void check_specials_stay(const TokenizerSpec& spec, const std::string& name) {
  std::vector<bool> special(static_cast<size_t>(spec.size));
  for (const AddedToken& token : spec.added) special[token.id] = token.special;
  for (const BpeSpec::Merge& merge : spec.bpe.merges)
    if (special[merge.result])
      fail(ErrorKind::data,
           "{}: .model.merges gives the special token {}, which is not supported: texts could become it", name,
           spec.bpe.pieces[merge.result]);
  const bool byte_level = spec.pre_tokenizer.last == PreTokenizerSpec::Last::byte_level;
  for (const AddedToken& token : spec.added) {
    const bool is_byte = spec.bpe.byte_fallback && token.content.starts_with("<0x") && token.content.size() == 6;
    const bool is_piece = token.id < std::ssize(spec.bpe.pieces) && (count_characters(token.content) == 1 || is_byte);
    const bool is_unknown =
        token.id == spec.eos && spec.bpe.unknown == spec.eos && !byte_level && !spec.bpe.byte_fallback;
    if (token.special && (is_piece || is_unknown))
      fail(ErrorKind::data, "{}: the special token {} is {}, which is not supported: texts could become it", name,
           token.content, is_unknown ? "the unk_token too" : "a character's or byte's piece");
  }
}

}  // namespace

TokenizerSpec read_tokenizer_json(const std::string& json, const std::string& name, const std::string& config,
                                  const std::string& config_name) {
  const nlohmann::json parsed = JsonNode::parse(json, name), parsed_config = JsonNode::parse(config, config_name);
  const JsonNode root(parsed, name);
  root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
             "decoder", "model"});
  if (const auto version = root.find("version")) version->require(version->text() == "1.0", "1.0");
  for (const char* key : {"truncation", "padding"})
    if (const auto option = root.find(key)) option->unsupported("null");
  TokenizerSpec spec;
  spec.normalizer = read_normalizer(root.find("normalizer"));
  spec.pre_tokenizer = read_pre_tokenizer(root.find("pre_tokenizer"));
  Ids ids;
  const bool byte_level = spec.pre_tokenizer.last == PreTokenizerSpec::Last::byte_level;
  spec.bpe = read_model(root.at("model"), byte_level, ids);
  spec.added = read_added(root.find("added_tokens"), ids);
  spec.size = static_cast<int32_t>(ids.size());
  const bool prepended = spec.pre_tokenizer.last == PreTokenizerSpec::Last::metaspace
                             ? spec.pre_tokenizer.prepend != PrependScheme::never
                             : std::ranges::any_of(spec.normalizer, [](const NormalizerStep& step) {
                                 return step.kind == NormalizerStep::Kind::prepend;
                               });
  spec.decoder = read_decoder(root.at("decoder"), prepended);
  read_ends(root, JsonNode(parsed_config, config_name), ids, spec);
  check_specials_stay(spec, name);
  return spec;
}

}  // namespace notellm

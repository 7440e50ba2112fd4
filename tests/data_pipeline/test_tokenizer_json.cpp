// The strict reader: each thing that a tokenizer.json may say and that is not supported is an error that names it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data_pipeline/tokenizer.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

using Json = nlohmann::json;
using Pointer = Json::json_pointer;
namespace fs = std::filesystem;

Json golden(const std::string& style, const char* file = "tokenizer.json") {
  return Json::parse(read_file(fs::path(NOTELLM_SOURCE_DIR) / "tests/golden/tokenizers" / style / file));
}

Tokenizer read(const std::string& json, const std::string& config) {
  return Tokenizer::from_files({{"tokenizer.json", json}, {"tokenizer_config.json", config}}, "x/tokenizer.json");
}
Tokenizer read(const Json& json, const Json& config) { return read(json.dump(), config.dump()); }

// A style with one value changed, or taken away where it is discarded.
struct Change {
  const char* style;
  const char* path;
  Json value;
  const char* message;
};

void expect_refused(const Change& change) {
  SCOPED_TRACE(change.path);
  Json json = golden(change.style);
  json[Pointer(change.path)] = change.value;
  EXPECT_ERROR(data, change.message, read(json, golden(change.style, "tokenizer_config.json")));
  EXPECT_ERROR(data, "x/tokenizer.json: ", read(json, golden(change.style, "tokenizer_config.json")));
}

TEST(TokenizerJson, UnknownKeysTypesAndOptionsAreErrorsThatNameThem) {
  const Json regex = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const auto with = [](Json json, const char* key, const Json& value) {
    json[key] = value;
    return json;
  };
  const Change changes[] = {
      {"gpt2", "/version", "2.0", ".version is \"2.0\", which is not supported; supported: 1.0"},
      {"gpt2", "/truncation", {{"max_length", 512}}, ".truncation is {\"max_length\":512}, which is not supported"},
      {"gpt2", "/padding", {{"strategy", "BatchLongest"}}, ".padding is"},
      {"gpt2", "/extra", 1, ".extra is 1, which is not supported; supported: the keys version, "},
      {"gpt2", "/normalizer", {{"type", "Lowercase"}}, ".normalizer.type is \"Lowercase\""},
      {"qwen2", "/normalizer/extra", true, ".normalizer.extra is true"},
      {"llama2", "/normalizer/normalizers/1/pattern", {{"Regex", " "}}, "supported: a String"},
      {"llama2", "/normalizer/normalizers/1/pattern", {{"String", ""}}, "a pattern that is not empty"},
      {"gpt2", "/pre_tokenizer", {{"type", "Whitespace"}}, ".pre_tokenizer.type is \"Whitespace\""},
      {"gpt2", "/pre_tokenizer/use_regex", "yes", ".pre_tokenizer.use_regex is \"yes\", not true or false"},
      {"gpt2", "/pre_tokenizer/add_prefix_space", nullptr, ".pre_tokenizer.add_prefix_space is null"},
      {"smollm", "/pre_tokenizer/pretokenizers/0/extra", 1, ".pre_tokenizer.pretokenizers[0].extra is 1"},
      {"smollm", "/pre_tokenizer/pretokenizers/2", regex, "ByteLevel or Metaspace as the last step only"},
      {"llama3", "/pre_tokenizer/pretokenizers/0/behavior", "Elsewhere", "Removed, Isolated, MergedWithPrevious"},
      {"llama3", "/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "\\w+"}}, "an escape at byte 1"},
      {"llama3", "/pre_tokenizer/pretokenizers/0/pattern", {{"Glob", "*"}}, ".pattern.Glob is"},
      {"metaspace", "/pre_tokenizer/prepend_scheme", "last", "supported: always, first, never"},
      {"metaspace", "/pre_tokenizer/add_prefix_space", false, "the same as prepend_scheme"},
      {"metaspace", "/pre_tokenizer/replacement", "__", "a character other than the space"},
      {"gpt2", "/post_processor", {{"type", "BertProcessing"}}, ".post_processor.type is \"BertProcessing\""},
      {"llama2", "/post_processor/single/0/SpecialToken/id", "<x>", ".special_tokens.<x> is missing"},
      {"llama2", "/post_processor/special_tokens/<s>/ids/0", 100000, "the id of a token"},
      {"llama2", "/post_processor/single/1/Sequence/id", "B", "the sequence A, once"},
      {"llama2", "/post_processor/single/1/SpecialToken", {{"id", "<s>"}}, "either a SpecialToken or a Sequence"},
      {"llama2", "/post_processor/special_tokens/<s>/ids/1", 1, "one id"},
      {"gpt2", "/decoder", nullptr, ".decoder is null"},
      {"gpt2", "/decoder", {{"type", "WordPiece"}}, "ByteLevel, ByteFallback, Metaspace"},
      {"unknown", "/decoder/prepend_scheme", "never", "a prepend_scheme that takes off what was put before the text"},
      {"unknown", "/decoder/prepend_scheme", "last", "supported: always, first, never"},
      {"llama2", "/decoder/decoders/3/extra", 1, ".decoder.decoders[3].extra is 1"},
      {"gpt2", "/model/type", "Unigram", ".model.type is \"Unigram\", which is not supported; supported: BPE"},
      {"gpt2", "/model/extra", 1, ".model.extra is 1"},
      {"gpt2", "/model/dropout", 0.1, ".model.dropout is 0.1"},
      {"gpt2", "/model/continuing_subword_prefix", "##", ".model.continuing_subword_prefix is \"##\""},
      {"gpt2", "/model/end_of_word_suffix", "</w>", ".model.end_of_word_suffix is"},
      {"gpt2", "/model/byte_fallback", true, "either byte_fallback or the pre-tokenizer ByteLevel"},
      {"gpt2", "/added_tokens/0/extra", 1, ".added_tokens[0].extra is 1"},
  };
  for (const Change& change : changes) expect_refused(change);
  expect_refused({"smollm", "/pre_tokenizer", with(golden("smollm")["pre_tokenizer"], "more", 1), ".more is 1"});
}

TEST(TokenizerJson, VocabularyMergesAndAddedTokensMustAgree) {
  const Json vocabulary = golden("gpt2")["model"]["vocab"];
  Json hole = vocabulary, without_byte = golden("gpt2");
  hole["new"] = 5000;
  const Change changes[] = {
      {"gpt2", "/model/vocab", hole, ".model.vocab.new is 5000, which is not supported; supported: ids 0 to 900"},
      {"gpt2", "/model/vocab/new", 7, ".model.vocab."},
      {"gpt2", "/model/vocab/new", -1, ".model.vocab.new is -1"},
      {"gpt2", "/model/vocab/new", "a", ".model.vocab.new is \"a\", not an integer"},
      {"gpt2", "/model/vocab/new", 18446744073709551615u, ".model.vocab.new is 18446744073709551615, too large"},
      {"gpt2", "/model/vocab", Json::object(), ".model.vocab is {}"},
      {"gpt2", "/model/merges/0", {"q", "qqq"}, "is not in model.vocab"},
      {"gpt2", "/model/merges/0", {"a", "b", "c"}, "pairs of pieces"},
      {"gpt2", "/model/merges/0", "a b c", "two pieces with a space between"},
      {"gpt2", "/model/merges/1", golden("gpt2")["model"]["merges"][0], "stands twice in the list"},
      {"llama2", "/model/unk_token", "<none>", ".model.unk_token is \"<none>\""},
      {"unknown", "/model/unk_token", nullptr, "characters would be dropped"},
      {"unknown", "/model/unk_token", "</s>", "the special token </s> is the unk_token too"},
      {"gpt2", "/added_tokens/0/id", 7, "but its id must be 0, as in model.vocab"},
      {"llama3", "/added_tokens/1/id", 950, "but its id must be 901, the next one"},
      {"llama3", "/added_tokens/1/content", "", "a token that is not empty"},
      {"llama3", "/added_tokens/1/content", "<|begin_of_text|>", "stands twice in the list"},
      {"gpt2_prefix", "/added_tokens/1/special", false, "not a special token; make it one"},
  };
  for (const Change& change : changes) expect_refused(change);
  // A piece of one byte that is not there; then one of byte fallback.
  for (const auto& [style, gone, message] :
       {std::tuple{"gpt2", "!", "0x21 is missing"}, {"llama2", "<0x0A>", "<0x0A> is"}}) {
    Json json = golden(style);
    Json& vocab = json["model"]["vocab"];
    const Json id = vocab[gone];
    vocab.erase(gone);
    vocab["new piece"] = id;
    json["model"]["merges"] = Json::array();
    EXPECT_ERROR(data, message, read(json, golden(style, "tokenizer_config.json")));
  }
  // A text would become a special token.
  for (const auto& [style, content] : {std::pair{"gpt2", "!"}, {"llama2", "<0x0A>"}}) {
    Json json = golden(style);
    Json token = json["added_tokens"][0];
    token["content"] = content;
    token["id"] = json["model"]["vocab"][content];
    json["added_tokens"].push_back(token);
    EXPECT_ERROR(data, fmt::format("the special token {} is a character's or byte's piece", content),
                 read(json, golden(style, "tokenizer_config.json")));
  }
  Json json = golden("gpt2");
  const Json merge = json["model"]["merges"][0];
  const std::string merged = merge[0].get<std::string>() + merge[1].get<std::string>();
  json["added_tokens"].push_back(json["added_tokens"][0]);
  json["added_tokens"][1]["content"] = merged;
  json["added_tokens"][1]["id"] = json["model"]["vocab"][merged];
  EXPECT_ERROR(data, ".model.merges gives the special token " + merged,
               read(json, golden("gpt2", "tokenizer_config.json")));
  json = golden("qwen2");
  for (const auto& [content, id] : {std::pair{"\u00e9", 165}, {"e\u0301", 903}})
    json["added_tokens"].push_back({{"id", id},
                                    {"content", content},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", true},
                                    {"special", false}});
  EXPECT_ERROR(data, "two added tokens are \u00e9 after normalisation",
               read(json, golden("qwen2", "tokenizer_config.json")));
}

TEST(TokenizerJson, DamagedFilesAreErrors) {
  const std::string whole = golden("gpt2").dump(), config = golden("gpt2", "tokenizer_config.json").dump();
  for (const size_t size : {size_t{0}, size_t{1}, whole.size() / 2, whole.size() - 1})
    EXPECT_ERROR(data, "x/tokenizer.json: not JSON, or cut short", read(whole.substr(0, size), config));
  EXPECT_ERROR(data, "x/tokenizer_config.json: not JSON", read(whole, "{"));
  EXPECT_ERROR(data, "x/tokenizer.json: the whole is [], not an object", read("[]", config));
  EXPECT_ERROR(data, "x/tokenizer.json: .model is missing", read("{}", config));
  EXPECT_ERROR(data, "the key \"version\" stands twice", read("{\"version\":\"1.0\",\"version\":\"1.0\"}", config));
  EXPECT_ERROR(data, "not JSON", read(std::string("\xff").append(whole), config));
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "{\"type\":\"Sequence\",\"normalizers\":[";
  EXPECT_ERROR(data, "nested more than 64 deep", read(nested, config));
  nested.assign(1'000'000, '[').append(1'000'000, ']');
  EXPECT_ERROR(data, "nested more than 64 deep", read(nested, config));
  EXPECT_ERROR(data, "nested more than 64 deep", read(whole, "{\"eos_token\":" + nested + "}"));
  std::string wide = "{\"x\":[{}";  // not quadratic: it would take minutes
  for (int i = 0; i < 1'000'000; ++i) wide += ",{}";
  EXPECT_ERROR(data, ".x is [{},{},", read(wide + "]}", config));
  EXPECT_ERROR(
      data, "aaa …, which is not supported",
      read("{\"x\":\"" + std::string(98, 'a') + "\u732b\u732b\u732b\u732b\u732b\u732b\u732b\u732b\"}", config));
  Json json = golden("gpt2"), sequence = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) sequence = {{"type", "Sequence"}, {"normalizers", {sequence}}};
  json["normalizer"] = sequence;
  EXPECT_ERROR(data, "nested up to 8 deep", read(json.dump(), config));
  json = golden("smollm");
  json["pre_tokenizer"]["pretokenizers"] = std::vector<Json>(100'000, json["pre_tokenizer"]["pretokenizers"][0]);
  EXPECT_ERROR(data, "up to 64 steps", read(json.dump(), config));
}

TEST(TokenizerJson, WhichTokensBeginAndEndATextMustBeClear) {
  const Json qwen2 = golden("qwen2"), llama2 = golden("llama2");
  EXPECT_FALSE(read(qwen2, {{"eos_token", "<|im_start|>"}}).bos());
  EXPECT_EQ(read(qwen2, {{"eos_token", "<|im_start|>"}}).eos(), qwen2["added_tokens"][1]["id"]);
  EXPECT_EQ(read(llama2, {{"eos_token", {{"content", "</s>"}}}}).bos(), 1);
  EXPECT_ERROR(data, "x/tokenizer_config.json: the whole is {}, which does not say what token ends a text",
               read(qwen2, Json::object()));
  EXPECT_ERROR(data, ".eos_token is \"none\", which is not supported; supported: a special token of tokenizer.json",
               read(qwen2, {{"eos_token", "none"}}));
  EXPECT_ERROR(data, ".eos_token is \"<tool_call>\"", read(qwen2, {{"eos_token", "<tool_call>"}}));
  EXPECT_ERROR(data, ".add_bos_token is true, but the post_processor of tokenizer.json puts no token before a text",
               read(qwen2, {{"eos_token", "<|im_start|>"}, {"add_bos_token", true}}));
  EXPECT_ERROR(data, ".add_bos_token is false, but", read(llama2, {{"eos_token", "</s>"}, {"add_bos_token", false}}));
  EXPECT_ERROR(data, ".bos_token is \"</s>\", but", read(llama2, {{"eos_token", "</s>"}, {"bos_token", "</s>"}}));
  Json json = llama2;
  Json& single = json["post_processor"]["single"];
  single.insert(single.begin(), single[0]);
  EXPECT_ERROR(data, "one token before a text", read(json, {{"eos_token", "</s>"}}));
  json = golden("unknown");
  EXPECT_ERROR(data, "no token after a text but the eos_token [EMB]", read(json, {{"eos_token", "[EMB]"}}));
}

TEST(TokenizerJson, EmbIsTheNextIdOrTheFilesOwn) {
  const Tokenizer next = read(golden("qwen2"), golden("qwen2", "tokenizer_config.json"));
  EXPECT_EQ(next.emb(), 903);
  EXPECT_EQ(next.vocabulary(), 904);
  const Tokenizer own = read(golden("gpt2_prefix"), golden("gpt2_prefix", "tokenizer_config.json"));
  EXPECT_EQ(own.emb(), 1);
  EXPECT_EQ(own.vocabulary(), golden("gpt2_prefix")["added_tokens"].back()["id"].get<int>() + 1);
  for (const Tokenizer* t : {&next, &own}) {
    EXPECT_EQ(t->piece(t->emb()), "[EMB]");
    EXPECT_EQ(t->decode(std::vector<int32_t>{t->emb(), t->eos()}, Place::begins), "[EMB]");
    EXPECT_ERROR(data, "outside the tokenizer's vocabulary", t->piece(t->vocabulary()));
    for (const int32_t id : t->encode("[EMB] <|endoftext|> </s>", Place::begins)) EXPECT_GT(id, 1);
  }
}

TEST(TokenizerJson, OlderFormsOfTheFile) {
  Json json = golden("gpt2");
  const Tokenizer tokenizer = read(json, golden("gpt2", "tokenizer_config.json"));
  json["model"].erase("type");
  for (Json& merge : json["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) json["model"][key] = "";
  const Tokenizer older = read(json, golden("gpt2", "tokenizer_config.json"));
  EXPECT_EQ(older.encode("the library files", Place::begins), tokenizer.encode("the library files", Place::begins));
  EXPECT_NE(older.digest(), tokenizer.digest());
}

TEST(TokenizerJson, TheFileBesideIsNeeded) {
  const test::TempDir folder;
  write_file(folder / "tokenizer.json", golden("qwen2").dump());
  EXPECT_ERROR(io, "tokenizer_config.json: is not beside tokenizer.json", Tokenizer::load(folder / "tokenizer.json"));
  EXPECT_ERROR(io, "tokenizer_config.json", Tokenizer::load_stored(folder.path()));
  write_file(folder / "tokenizer_config.json", golden("qwen2", "tokenizer_config.json").dump());
  EXPECT_EQ(Tokenizer::load(folder / "tokenizer.json").digest(), Tokenizer::load_stored(folder.path()).digest());
  const test::TempDir empty;
  EXPECT_ERROR(io, "tokenizer.model", Tokenizer::load_stored(empty.path()));
}

}  // namespace
}  // namespace notellm

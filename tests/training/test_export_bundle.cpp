// The small files of an export.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/files.h"
#include "training/export_bundle.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// A template that ends texts with EOS would take the vector's place, the last token.
TEST(ExportedTokenizer, PutsNothingBehindATextAndKeepsTheRest) {
  const fs::path golden = fs::path(NOTELLM_SOURCE_DIR) / "tests/golden/tokenizers";
  const auto files_of = [&](const char* style) {
    TokenizerFiles files;
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) files[name] = read_file(golden / style / name);
    return files;
  };
  const auto parsed = [](const TokenizerFiles& files, const char* name) {
    return nlohmann::json::parse(files.at(name));
  };
  TokenizerFiles files = files_of("unknown");
  auto config = parsed(files, "tokenizer_config.json");
  config["add_eos_token"] = true;
  files["tokenizer_config.json"] = config.dump();
  const Tokenizer ends = Tokenizer::from_files(files, "unknown");
  ASSERT_TRUE(ends.has_own_emb());
  const TokenizerFiles exported = exported_tokenizer(ends, 64);
  auto before = parsed(files, "tokenizer.json"), after = parsed(exported, "tokenizer.json");
  EXPECT_EQ(after["post_processor"]["single"], nlohmann::json::array({before["post_processor"]["single"][0]}));
  after["post_processor"]["single"] = before["post_processor"]["single"];
  EXPECT_EQ(after, before);
  EXPECT_EQ(parsed(exported, "tokenizer_config.json")["add_eos_token"], false);
  // In a sequence: BOS stays. Nothing to take off: the bytes stay, where [EMB] is there too.
  const TokenizerFiles llama3 = exported_tokenizer(Tokenizer::from_files(files_of("llama3"), "llama3"), 64);
  EXPECT_EQ(parsed(llama3, "tokenizer.json")["post_processor"],
            parsed(files_of("llama3"), "tokenizer.json")["post_processor"]);
  const Tokenizer prefix = Tokenizer::from_files(files_of("gpt2_prefix"), "gpt2_prefix");
  EXPECT_EQ(exported_tokenizer(prefix, 64).at("tokenizer.json"), files_of("gpt2_prefix").at("tokenizer.json"));
}

// What stands in a card's Python is a JSON string, which is a Python literal.
TEST(ModelCard, ItsPromptIsALiteral) {
  CheckpointInfo checkpoint;
  checkpoint.config.data.title = "{name}: \"{title}\"";
  for (const auto& [preset, prompt] :
       {std::pair{PromptPreset::paper,
                  "Extract the note information in json format, compress it into one word for recommendation, and "
                  "generate the category of the note. {'title': TITLE, 'topic': TOPIC, TOPIC, 'content': CONTENT} The "
                  "compression word is:\""},
        {PromptPreset::released,
         "笔记：{\"标题\":\"TITLE\",\"话题\":\"TOPIC，TOPIC\",\"内容\":\"CONTENT\"}，压缩为一个词：“"}}) {
    checkpoint.config.data.prompt.preset = preset;
    const std::string card = model_card(checkpoint, "");
    const size_t begin = card.find("prompt = ") + 9;
    EXPECT_EQ(nlohmann::json::parse(card.substr(begin, card.find('\n', begin) - begin)), prompt);
    EXPECT_NE(card.find("`\"{name}: \\\"{title}\\\"\"`, cuts them to 20 tokens"), std::string::npos) << card;
  }
}

}  // namespace
}  // namespace notellm

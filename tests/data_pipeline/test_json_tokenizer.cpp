#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data_pipeline/tokenizer.h"
#include "data_pipeline/word_encoder.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using Json = nlohmann::json;
using Tokens = std::vector<int32_t>;
namespace fs = std::filesystem;

const fs::path golden_folder = fs::path(NOTELLM_SOURCE_DIR) / "tests/golden/tokenizers";

Json read_json(const fs::path& path) { return Json::parse(read_file(path)); }

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

const std::vector<std::string>& golden_texts() {
  static const std::vector<std::string> texts = [] {
    std::vector<std::string> list;
    const Json file = read_json(golden_folder / "texts.json");
    for (const Json& hex : file.at("texts")) list.push_back(from_hex(hex));
    return list;
  }();
  return texts;
}

// Each style of tests/golden/tokenizers, made by the `tokenizers` library (make.py there).
class Style : public testing::TestWithParam<const char*> {
 protected:
  const fs::path folder_ = golden_folder / GetParam();
  const Tokenizer tokenizer_ = Tokenizer::load(folder_ / "tokenizer.json");
  const Json golden_ = read_json(folder_ / "golden.json");
};

TEST_P(Style, GivesTheIdsOfTheLibrary) {
  ASSERT_GT(golden_texts().size(), 200);
  for (size_t i = 0; i < golden_texts().size(); ++i)
    EXPECT_EQ(tokenizer_.encode(golden_texts()[i], Place::begins), golden_.at("ids")[i].get<Tokens>())
        << i << ": " << golden_texts()[i];
}

TEST_P(Style, WordsGiveTheIdsOfTheLibrary) {
  WordEncoder encoder(tokenizer_);
  EXPECT_TRUE(tokenizer_.cuts_at_spaces() || std::string(GetParam()) == "gpt2_prefix");
  for (int round = 0; round < 2; ++round)  // the second time from memory
    for (size_t i = 0; i < golden_texts().size(); ++i)
      EXPECT_EQ(encoder.encode(golden_texts()[i], Place::begins), golden_.at("ids")[i].get<Tokens>())
          << i << ": " << golden_texts()[i];
}

// BOS where the file says so, [EMB] as a special token, and EOS where the post-processor adds one.
TEST_P(Style, GivesTheIdsOfWholePrompts) {
  const Json file = read_json(golden_folder / "texts.json"), &prompts = file.at("prompts");
  for (size_t i = 0; i < prompts.size(); ++i) {
    Tokens ids = tokenizer_.bos() ? Tokens{*tokenizer_.bos()} : Tokens{};
    const auto append = [&](const Tokens& more) { ids.insert(ids.end(), more.begin(), more.end()); };
    append(tokenizer_.encode(prompts[i][0].get<std::string>(), Place::begins));
    append({tokenizer_.emb()});
    append(tokenizer_.encode(prompts[i][1].get<std::string>(), Place::after_token));
    if (std::string(GetParam()) == "unknown") append({tokenizer_.eos()});
    EXPECT_EQ(ids, golden_.at("prompts")[i].get<Tokens>()) << prompts[i];
  }
}

// As the library decodes; but of the spaces at the beginning, Metaspace takes off only the one that was put there.
TEST_P(Style, DecodesAsTheLibrary) {
  for (size_t i = 0; i < golden_texts().size(); ++i) {
    const Tokens ids = golden_.at("ids")[i];
    const Json& decoded = golden_.at("decoded")[i];
    std::string text = tokenizer_.decode(ids, Place::begins);
    if (decoded.is_null()) {
      EXPECT_EQ(tokenizer_.encode(text, Place::begins), ids);
    } else {
      EXPECT_EQ(text, decoded.get<std::string>()) << i;
    }
  }
}

TEST_P(Style, EndsOfTokensAscendToTheEnd) {
  for (const std::string& text : golden_texts()) {
    const std::vector<size_t> ends = tokenizer_.token_ends(text);
    EXPECT_EQ(ends.size(), tokenizer_.encode(text, Place::goes_on).size());
    EXPECT_TRUE(std::is_sorted(ends.begin(), ends.end()));
    // Bytes that smollm's vocabulary does not have are dropped; at the end, they are of no token.
    const std::string_view rest = std::string_view(text).substr(ends.empty() ? 0 : ends.back());
    EXPECT_TRUE(rest.empty() ||
                (std::string(GetParam()) == "smollm" && tokenizer_.encode(rest, Place::goes_on).empty()))
        << text;
  }
}

TEST_P(Style, TruncationNeverExceedsTheLimit) {
  WordEncoder encoder(tokenizer_);
  for (const std::string& text : golden_texts())
    for (const bool after_space : {false, true})
      for (const int64_t limit : {0, 1, 2, 3, 5, 8, 13, 40}) {
        const std::string_view part = encoder.truncate(text, after_space, limit);
        EXPECT_EQ(part, text.substr(0, part.size()));
        const std::string placed = std::string(after_space && !part.empty() ? 1 : 0, ' ').append(part);
        EXPECT_LE(std::ssize(tokenizer_.encode(placed, Place::goes_on)), limit) << text;
      }
}

INSTANTIATE_TEST_SUITE_P(Golden, Style,
                         testing::Values("gpt2", "gpt2_prefix", "llama3", "qwen2", "smollm", "llama2", "metaspace",
                                         "unknown"),
                         [](const auto& style) { return std::string(style.param); });

}  // namespace
}  // namespace notellm

// Which notes are asked for their labels, what the baselines answer, and how answers are scored.
#include <gtest/gtest.h>

#include <fstream>

#include "data_pipeline/prepare.h"
#include "data_pipeline/shards.h"
#include "evaluation/generation_quality.h"
#include "evaluation/report.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace notellm {
namespace {

using Texts = std::vector<std::string>;

// Eight notes, of which pairs are among the first four.
struct Fixture {
  test::TempDir folder;
  Shards shards;
  AskedLabels asked;

  explicit Fixture(const std::string& preset = "paper") {
    const auto note = [](int id, const std::string& text, const std::string& category, const std::string& hashtags) {
      return fmt::format(R"({{"id": "{}", "title": "{}", "content": "x", "category": "{}", "hashtags": [{}]}})", id,
                         text, category, hashtags) +
             "\n";
    };
    std::ofstream(folder / "notes.jsonl")
        << note(0, "red rose", "garden", R"("flower", "red thing")") << note(1, "blue rose", "garden", R"("flower")")
        << note(2, "moon probe", "space", R"("far")") << note(3, "mars probe", "space news", "")
        << note(4, "a rose", "garden", R"("flower", "thorn")") << note(5, "mars rover", "space news", R"("far")")
        << note(6, "blue whale", "", R"("sea", "blue")") << note(7, "moon", "moon", "");
    std::ofstream(folder / "clicks.tsv") << "u\t0 1\nv\t2 3\n";
    PrepareConfig config;
    config.notes = (folder / "notes.jsonl").string();
    config.shards = (folder / "shards").string();
    config.clicks.files = {(folder / "clicks.tsv").string()};
    config.clicks.heldout_share = 0;
    config.clicks.stop_share = 1;
    config.cooccurrence.lower = 0;
    config.tokenizer.vocabulary = 320;
    if (preset == "released") config.prompt.preset = PromptPreset::released;
    Communicator self = Communicator::self();
    prepare(config, self);
    shards = read_shards(folder / "shards");
    asked = ask_labels(shards.notes, shards.pairs.train, 100).at(0);
  }
  OutputReader reader() const { return {folder / "shards", shards.notes}; }
};

TEST(GenerationQuality, AsksNotesInNoTrainingPair) {
  const Fixture f;
  EXPECT_EQ(f.asked.category, (std::vector<int32_t>{4, 5, 7}));
  EXPECT_EQ(f.asked.hashtags, (std::vector<int32_t>{4, 5, 6}));
  EXPECT_EQ(f.asked.known, (std::vector<uint8_t>{1, 1, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(f.asked.slice, "unclicked");
  EXPECT_EQ(ask_labels(f.shards.notes, f.shards.pairs.train, 2).at(0).category, (std::vector<int32_t>{4, 5}));
}

TEST(GenerationQuality, AsksNotesOfThePoolApart) {
  Fixture f;
  f.shards.notes.in_pool[5] = f.shards.notes.in_pool[6] = 1;
  const std::vector<AskedLabels> slices = ask_labels(f.shards.notes, f.shards.pairs.train, 100);
  ASSERT_EQ(slices.size(), 2);
  EXPECT_EQ(slices[0].slice, "clicked");
  EXPECT_EQ(slices[0].category, std::vector<int32_t>{5});
  EXPECT_EQ(slices[0].hashtags, (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(slices[1].slice, "unclicked");
  EXPECT_EQ(slices[1].category, (std::vector<int32_t>{4, 7}));
  EXPECT_EQ(slices[1].hashtags, std::vector<int32_t>{4});
  EXPECT_EQ(slices[1].known, f.asked.known);
}

TEST(GenerationQuality, ReadsLabels) {
  for (const char* preset : {"paper", "released"}) {
    const Fixture f(preset);
    const OutputReader reader = f.reader();
    EXPECT_EQ(reader.category(f.shards.notes, 3), "space news");
    EXPECT_EQ(reader.category(f.shards.notes, 6), "");
    EXPECT_EQ(reader.hashtags(f.shards.notes, 0), (Texts{"flower", "red thing"}));
    EXPECT_EQ(reader.hashtags(f.shards.notes, 7), Texts());
    // The tokens that training was given for two hashtags.
    const NoteTable& n = f.shards.notes;
    std::vector<int32_t> tokens(n.hashtag_inner[0].begin(), n.hashtag_inner[0].end());
    tokens.insert(tokens.end(), n.hashtag_last[1].begin(), n.hashtag_last[1].end());
    EXPECT_EQ(reader.labels(Task::hashtags, tokens), (Texts{"flower", "red thing"}));
    EXPECT_EQ(joined_hashtags(reader.preset(), {"a", "b"}), preset == std::string("paper") ? "a, b" : "a，b");
  }
}

TEST(GenerationQuality, ClosedSetHasEachCategoryOnce) {
  const Fixture f;
  const TokenTrie trie = category_trie(f.shards.notes);
  const OutputReader reader = f.reader();
  Texts found;
  const auto walk = [&](const auto& self, int32_t node, std::vector<int32_t> tokens) -> void {
    for (const int32_t token : trie.candidates(node)) {
      if (token == f.shards.notes.prompt.eos) {
        found.push_back(reader.labels(Task::category, tokens)[0]);
        continue;
      }
      std::vector<int32_t> longer = tokens;
      longer.push_back(token);
      self(self, trie.next(node, token), longer);
    }
  };
  walk(walk, TokenTrie::root, {});
  std::ranges::sort(found);
  EXPECT_EQ(found, (Texts{"garden", "moon", "space", "space news"}));
  NoteTable none;
  EXPECT_ERROR(data, "no note of the shards has a category", category_trie(none));
}

TEST(GenerationQuality, BaselinesByHand) {
  const Fixture f;
  const LabelMethod common = majority_labels(f.shards.notes, f.asked, f.reader());
  EXPECT_EQ(common.categories, (Texts{"garden", "garden", "garden"}));
  EXPECT_EQ(common.hashtags, (std::vector<Texts>{{"flower", "far"}, {"flower"}, {"flower", "far"}}));
  // "a rose" is nearer to "blue rose" than to "red rose", as "blue" stands in "blue whale" too and counts for less.
  // "mars rover" has a word with note 3, which has no hashtags; with the others nothing, so that the first counts.
  // "moon" is in note 2.
  const LabelMethod near = tfidf_labels(f.shards.notes, f.asked, f.reader(), f.folder / "notes.jsonl", "{title}");
  EXPECT_EQ(near.categories, (Texts{"garden", "space news", "space"}));
  EXPECT_EQ(near.hashtags, (std::vector<Texts>{{"flower"}, {"flower", "red thing"}, {"flower"}}));
}

TEST(GenerationQuality, ScoresByHand) {
  const Fixture f;
  const std::vector<LabelMethod> methods = {
      {"one", {"garden", "space", "nonsense"}, {{"thorn", "flower"}, {"near"}, {}}}, {"two", {"", "", ""}, {}}};
  const GenerationQuality q = score_labels(f.shards.notes, f.asked, f.reader(), methods);
  EXPECT_EQ(q.category_notes, 3);
  EXPECT_EQ(q.hashtag_notes, 3);
  EXPECT_DOUBLE_EQ(q.methods[0].category.accuracy, 1.0 / 3);
  EXPECT_DOUBLE_EQ(q.methods[0].category.illusory, 1.0 / 3);
  EXPECT_DOUBLE_EQ(q.methods[0].sets.precision, 2.0 / 3);
  EXPECT_DOUBLE_EQ(q.methods[0].sets.recall, 2.0 / 5);
  EXPECT_DOUBLE_EQ(q.methods[0].rouge.rouge_1, 1.0 / 3);
  EXPECT_DOUBLE_EQ(q.methods[0].rouge.rouge_l, 0.5 / 3);
  EXPECT_FALSE(q.methods[1].of_hashtags);
  EXPECT_DOUBLE_EQ(q.methods[1].category.illusory, 1);
  const std::string table = format_quality(q), json = report_json({}, {}, 5, std::span(&q, 1));
  EXPECT_NE(table.find("unclicked notes in no training pair: categories of 3, hashtags of 3"), std::string::npos);
  EXPECT_NE(json.find("\"set_f1\": 0.5"), std::string::npos);
  EXPECT_EQ(report_json({}, {}, 5).find("generation"), std::string::npos);
}

TEST(NoteGenerator, NamesANoteThatIsTooLong) {
  const Fixture f;
  ModelConfig c = test::tiny_model_config();
  c.context = 40;
  const ParameterLayout layout(c, padded_vocabulary(f.shards.notes.prompt.vocabulary));
  const test::FlatWeights weights(layout);
  NoteGenerator generator(c, DType::f32, {.max_tokens = 3, .sampling = {}}, 2);
  Stream stream;
  Communicator self = Communicator::self();
  const std::vector<NoteExample> examples = {{5, Task::category, {}, Until::guidance}};
  EXPECT_ERROR(data, "note '5' makes a prompt of",
               generator.generate(stream, self, weights.weights, f.shards.notes, examples, nullptr, {}, false));
}

}  // namespace
}  // namespace notellm

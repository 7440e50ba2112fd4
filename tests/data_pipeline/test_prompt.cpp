#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data_pipeline/prompt.h"
#include "data_pipeline/text_sample.h"
#include "runtime/files.h"
#include "tests/support/debian_notes.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using Tokens = std::vector<int32_t>;

constexpr const char* llama_tokenizer = "models/llama2-tokenizer.model";

const std::filesystem::path golden_tokenizers = std::filesystem::path(NOTELLM_SOURCE_DIR) / "tests/golden/tokenizers";

const Note shoe_note = {"7", "Red {shoes} \"x\"", "Light\n and  fast.\t", "sports", {"run", "shoe size"}};

std::vector<std::string> some_texts() {
  std::vector<std::string> texts;
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released})
    for (const Task task : {Task::category, Task::hashtags}) {
      const PromptText text = prompt_text(preset, task, shoe_note);
      texts.push_back(fold_spaces(text.instruction + text.note + " " + text.guidance + " " + text.output));
    }
  return texts;
}

const Tokenizer& small() {
  static const Tokenizer tokenizer = Tokenizer::from_model(Tokenizer::train(some_texts(), 420), "small");
  return tokenizer;
}

Tokens operator+(Tokens a, std::span<const int32_t> b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The whole prompt as text, [EMB] and EOS written out, made from the tokens alone.
std::string decoded(const Tokenizer& tokenizer, const Prompt& prompt, const NoteTokens& note, Task task,
                    const std::vector<int>& topics) {
  const PromptTokens& shared = prompt.shared();
  Tokens all;
  const size_t j = topics.size();
  if (task == Task::hashtags) {
    all = Tokens{} + shared.hashtag_instruction[j - 1] + note.hashtag_input + Tokens{shared.emb} +
          shared.hashtag_guidance[j - 1];
    for (size_t i = 0; i < j; ++i) all = all + (i + 1 < j ? note.hashtag_inner : note.hashtag_last)[topics[i]];
  } else {
    all = shared.category_instruction + note.category_input + Tokens{shared.emb} + shared.category_guidance +
          note.category;
  }
  return tokenizer.decode(all, Place::begins);
}

TEST(Prompt, LabelsOfOutputs) {
  const auto labels = labels_of_output;
  const auto paper = PromptPreset::paper, released = PromptPreset::released;
  using Texts = std::vector<std::string>;
  EXPECT_EQ(labels(paper, Task::category, " outer  space"), (Texts{"outer space"}));
  EXPECT_EQ(labels(paper, Task::category, " a, b"), (Texts{"a, b"}));  // one category
  EXPECT_EQ(labels(paper, Task::category, " "), Texts());
  EXPECT_EQ(labels(paper, Task::hashtags, " run, shoe size,, x ,"), (Texts{"run", "shoe size", "x"}));
  EXPECT_EQ(labels(released, Task::category, "美食。"), (Texts{"美食"}));
  EXPECT_EQ(labels(released, Task::category, "美食"), (Texts{"美食"}));
  EXPECT_EQ(labels(released, Task::hashtags, "美食，穿 搭。"), (Texts{"美食", "穿 搭"}));
  EXPECT_EQ(labels(released, Task::hashtags, ""), Texts());
  for (const PromptPreset preset : {paper, released}) {
    EXPECT_EQ(labels(preset, Task::hashtags, prompt_text(preset, Task::hashtags, shoe_note).output),
              shoe_note.hashtags);
    EXPECT_EQ(labels(preset, Task::category, prompt_text(preset, Task::category, shoe_note).output), (Texts{"sports"}));
  }
}

TEST(Prompt, PaperTextsLiterally) {
  Note note = shoe_note;
  note.content = fold_spaces(note.content);
  const PromptText category = prompt_text(PromptPreset::paper, Task::category, note);
  EXPECT_EQ(category.instruction + category.note + "[EMB]" + category.guidance + category.output,
            "Extract the note information in json format, compress it into one word for recommendation, and generate "
            "the category of the "
            "note. {'title': Red {shoes} \"x\", 'topic': run, shoe size, 'content': Light and fast.} The compression "
            "word is:\"[EMB]\". The "
            "category is: sports");
  const PromptText hashtags = prompt_text(PromptPreset::paper, Task::hashtags, note);
  EXPECT_EQ(hashtags.instruction + hashtags.note + "[EMB]" + hashtags.guidance + hashtags.output,
            "Extract the note information in json format, compress it into one word for recommendation, and generate 2 "
            "topics of the "
            "note. {'title': Red {shoes} \"x\", 'content': Light and fast.} The compression word is:\"[EMB]\". The 2 "
            "topics are: run, shoe "
            "size");
}

TEST(Prompt, ReleasedTextsLiterally) {
  Note note = shoe_note;
  note.content = fold_spaces(note.content);
  const PromptText category = prompt_text(PromptPreset::released, Task::category, note);
  EXPECT_EQ(category.instruction, "");
  EXPECT_EQ(category.note + "[EMB]" + category.guidance + category.output,
            "笔记：{\"标题\":\"Red {shoes} \"x\"\",\"话题\":\"run，shoe size\",\"内容\":\"Light and "
            "fast.\"}，压缩为一个词：“[EMB]”。生成笔记类目：sports。");
  note.hashtags = {"run"};
  const PromptText hashtags = prompt_text(PromptPreset::released, Task::hashtags, note);
  EXPECT_EQ(hashtags.instruction + hashtags.note + "[EMB]" + hashtags.guidance + hashtags.output,
            "笔记：{\"标题\":\"Red {shoes} \"x\"\",\"内容\":\"Light and "
            "fast.\"}，压缩为一个词：“[EMB]”。生成笔记1个话题：run。");
}

TEST(Prompt, TheTokensSpellTheTexts) {
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released}) {
    const Prompt prompt(small(), {.preset = preset, .content_tokens = 100, .max_note_tokens = 1000});
    WordEncoder encoder(small());
    Note fitted;
    const NoteTokens tokens = prompt.tokens(encoder, shoe_note, &fitted);
    EXPECT_EQ(fitted.content, "Light and fast.");
    for (const Task task : {Task::category, Task::hashtags}) {
      const PromptText text = prompt_text(preset, task, fitted);
      EXPECT_EQ(decoded(small(), prompt, tokens, task, {0, 1}),
                text.instruction + text.note + "[EMB]" + text.guidance + text.output);
    }
    // A subset in another order.
    Note other = fitted;
    other.hashtags = {"shoe size"};
    const PromptText text = prompt_text(preset, Task::hashtags, other);
    EXPECT_EQ(decoded(small(), prompt, tokens, Task::hashtags, {1}),
              text.instruction + text.note + "[EMB]" + text.guidance + text.output);
  }
}

TEST(Prompt, SharedTokensBeginWithBos) {
  const Prompt prompt(small(), {});
  EXPECT_EQ(prompt.shared().category_instruction[0], small().bos());
  EXPECT_EQ(prompt.shared().hashtag_instruction.size(), 3);
  EXPECT_EQ(prompt.shared().hashtag_instruction[2][0], small().bos());
  EXPECT_EQ(prompt.shared().emb, small().emb());
  EXPECT_EQ(prompt.shared().eos, small().eos());
  EXPECT_EQ(prompt.shared().vocabulary, small().vocabulary());
  EXPECT_EQ(Prompt(small(), {.preset = PromptPreset::released}).shared().category_instruction, Tokens{*small().bos()});
}

TEST(Prompt, FoldsSpaces) {
  EXPECT_EQ(fold_spaces(" a\n\tb  c \r\n"), "a b c");
  EXPECT_EQ(fold_spaces(""), "");
  EXPECT_EQ(fold_spaces(" \n"), "");
}

TEST(Prompt, TitlesStayAsTheyAre) {
  WordEncoder encoder(small());
  Note note = shoe_note, fitted;
  note.title = "  {a}\n'b' \\\"  ";
  Prompt(small(), {.title_tokens = 200, .max_note_tokens = 1000}).tokens(encoder, note, &fitted);
  EXPECT_EQ(fitted.title, note.title);
}

TEST(Prompt, CutsTitleAndContentAndKeepsTheSuffix) {
  WordEncoder encoder(small());
  Note note = shoe_note, fitted;
  for (int i = 0; i < 100; ++i) {
    note.title += " shoes";
    note.content += " fast";
  }
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released}) {
    const bool space = preset == PromptPreset::paper;
    const Prompt prompt(small(), {.preset = preset, .title_tokens = 12, .content_tokens = 9, .max_note_tokens = 2000});
    const NoteTokens tokens = prompt.tokens(encoder, note, &fitted);
    EXPECT_TRUE(tokens.title_cut && tokens.content_cut && !tokens.shortened);
    EXPECT_LE(small().encode((space ? " " : "") + fitted.title, Place::goes_on).size(), 12u);
    EXPECT_LE(small().encode((space ? " " : "") + fitted.content, Place::goes_on).size(), 9u);
    EXPECT_GT(fitted.title.size(), 3u);
    EXPECT_EQ(note.title.substr(0, fitted.title.size() + 1), fitted.title + " ");
    const std::string suffix = space ? "} The compression word is:\"" : "\"}，压缩为一个词：“";
    for (const Tokens& part : {tokens.category_input, tokens.hashtag_input})
      EXPECT_TRUE(small().decode(part, space ? Place::goes_on : Place::begins).ends_with(suffix));
  }
}

TEST(Prompt, KeepsMaxNoteTokensWhateverTheNote) {
  WordEncoder encoder(small());
  Note note = {"1", "", "", "c", {std::string(20, '@'), std::string(25, '@')}};
  for (int i = 0; i < 300; ++i) {
    note.title += "@";
    note.content += " @@";
  }
  const Prompt roomy(small(), {.title_tokens = 0, .content_tokens = 0, .max_hashtags = 0, .max_note_tokens = 1000});
  const int least = static_cast<int>(roomy.tokens(encoder, note).category_input.size());
  for (const int bound : {least, least + 1, least + 30, least + 60, least + 150}) {
    Note fitted;
    const Prompt prompt(small(), {.title_tokens = 50, .content_tokens = 80, .max_note_tokens = bound});
    const NoteTokens tokens = prompt.tokens(encoder, note, &fitted);
    EXPECT_LE(std::ssize(tokens.category_input), bound);
    EXPECT_LE(std::ssize(tokens.hashtag_input), bound);
    EXPECT_TRUE(tokens.shortened);
    EXPECT_EQ(tokens.hashtag_inner.size(), fitted.hashtags.size());
    EXPECT_EQ(tokens.hashtag_last.size(), fitted.hashtags.size());
    EXPECT_TRUE(fitted.content.empty() || fitted.hashtags.size() == 2);
    EXPECT_TRUE(fitted.hashtags.empty() || fitted.title.size() >= 40);
  }
  EXPECT_ERROR(usage, "data.prompt.max_note_tokens: 5 is too small", Prompt(small(), {.max_note_tokens = 5}));
}

TEST(Prompt, ChoosesHashtags) {
  WordEncoder encoder(small());
  Note note = shoe_note, fitted;
  note.hashtags = {"run", " run", std::string(200, '#'), " \n", "b", "c", "d"};
  NoteTokens tokens = Prompt(small(), {.max_note_tokens = 1000}).tokens(encoder, note, &fitted);
  EXPECT_EQ(fitted.hashtags, (std::vector<std::string>{"run", "b", "c"}));
  EXPECT_EQ(tokens.hashtags_left_out, 2);  // too long, white space only
  EXPECT_EQ(tokens.hashtags_beyond, 2);    // repeated, over the number
  note.category = std::string(200, '#');
  tokens = Prompt(small(), {.max_note_tokens = 1000}).tokens(encoder, note, &fitted);
  EXPECT_TRUE(tokens.category_left_out);
  EXPECT_TRUE(tokens.category.empty());
}

// Whole texts, tokenised at once, against the parts put together, on real notes. decodes: these tokens give the text
// back.
void expect_parts_make_the_whole(const Tokenizer& tokenizer, const std::vector<Note>& notes, PromptPreset preset,
                                 bool decodes = true) {
  const Prompt prompt(tokenizer, {.preset = preset});
  const PromptTokens& shared = prompt.shared();
  WordEncoder encoder(tokenizer);
  for (const Note& note : notes) {
    Note fitted;
    const NoteTokens tokens = prompt.tokens(encoder, note, &fitted);
    PromptText text = prompt_text(preset, Task::category, fitted);
    const Tokens bos = tokenizer.bos() ? Tokens{*tokenizer.bos()} : Tokens{};
    ASSERT_EQ(shared.category_instruction + tokens.category_input,
              bos + tokenizer.encode(text.instruction + text.note, Place::begins))
        << text.note;
    if (preset == PromptPreset::paper && !tokens.category.empty()) {
      ASSERT_EQ(shared.category_guidance + tokens.category,
                tokenizer.encode(text.guidance + text.output, Place::after_token))
          << text.output;
    }
    const size_t j = fitted.hashtags.size();
    if (j == 0) continue;
    text = prompt_text(preset, Task::hashtags, fitted);
    ASSERT_EQ(Tokens{} + shared.hashtag_instruction[j - 1] + tokens.hashtag_input,
              bos + tokenizer.encode(text.instruction + text.note, Place::begins));
    Tokens after = Tokens{} + shared.hashtag_guidance[j - 1];
    for (size_t i = 0; i < j; ++i) after = after + (i + 1 < j ? tokens.hashtag_inner : tokens.hashtag_last)[i];
    if (preset == PromptPreset::paper) {
      ASSERT_EQ(after, tokenizer.encode(text.guidance + text.output, Place::after_token));
    }
    if (decodes) {
      ASSERT_EQ(tokenizer.decode(after, Place::after_token), text.guidance + text.output);
    }
  }
}

TEST(Prompt, PartsMakeTheWholeOnRealNotesWithATrainedTokenizer) {
  NOTELLM_NEEDS_SHARED(test::debian_notes_file);
  const std::vector<Note> notes = test::debian_notes(40);
  TextSample sample(500, {});
  for (size_t i = 0; i < notes.size(); ++i) sample.offer(static_cast<int64_t>(i), notes[i]);
  const Tokenizer tokenizer = Tokenizer::from_model(Tokenizer::train(sample.take(), 2000), "trained");
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released})
    expect_parts_make_the_whole(tokenizer, notes, preset);
}

TEST(Prompt, PartsMakeTheWholeOnRealNotesWithLlama) {
  NOTELLM_NEEDS_SHARED(test::debian_notes_file);
  NOTELLM_NEEDS_SHARED(llama_tokenizer);
  const std::vector<Note> notes = test::debian_notes(40);
  const Tokenizer tokenizer = Tokenizer::load(test::shared_path(llama_tokenizer));
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released})
    expect_parts_make_the_whole(tokenizer, notes, preset);
}

// Of each style of tokenizer.json: without BOS too, and one that is not known to cut at spaces.
TEST(Prompt, PartsMakeTheWholeOnRealNotesWithTokenizerJson) {
  NOTELLM_NEEDS_SHARED(test::debian_notes_file);
  const std::vector<Note> notes = test::debian_notes(300);
  for (const char* style : {"gpt2", "gpt2_prefix", "llama3", "qwen2", "smollm", "llama2", "metaspace", "unknown"}) {
    SCOPED_TRACE(style);
    const Tokenizer tokenizer = Tokenizer::load(golden_tokenizers / style / "tokenizer.json");
    EXPECT_EQ(tokenizer.cuts_at_spaces(), style != std::string("gpt2_prefix"));
    // "unknown" does not know all characters; "gpt2_prefix" leaves the space before a text.
    const bool decodes = style != std::string("unknown") && style != std::string("gpt2_prefix");
    for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released})
      expect_parts_make_the_whole(tokenizer, notes, preset, decodes);
  }
}

TEST(Prompt, WithoutBosNothingStandsBeforeTheText) {
  const Tokenizer tokenizer = Tokenizer::load(golden_tokenizers / "qwen2" / "tokenizer.json");
  const Prompt paper(tokenizer, {}), released(tokenizer, {.preset = PromptPreset::released});
  EXPECT_EQ(tokenizer.decode(paper.shared().category_instruction, Place::begins).substr(0, 8), "Extract ");
  EXPECT_TRUE(released.shared().category_instruction.empty());
  WordEncoder encoder(tokenizer);
  const Tokens note = released.tokens(encoder, shoe_note).category_input;
  EXPECT_EQ(note, tokenizer.encode(tokenizer.decode(note, Place::begins), Place::begins));
}

// Llama 3's style with another regular expression, and ". " as one piece, the first of all merges.
Tokenizer with_expression(const char* expression) {
  auto json = nlohmann::json::parse(read_file(golden_tokenizers / "llama3" / "tokenizer.json"));
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = expression;
  auto &model = json["model"], &special = json["post_processor"]["processors"][1]["special_tokens"];
  for (auto& token : json["added_tokens"]) token["id"] = token["id"].get<int>() + 1;
  special["<|begin_of_text|>"]["ids"][0] = json["added_tokens"][0]["id"];
  model["vocab"][".\u0120"] = model["vocab"].size();
  model["merges"].insert(model["merges"].begin(), nlohmann::json::array({".", "\u0120"}));
  std::string config = read_file(golden_tokenizers / "llama3" / "tokenizer_config.json");
  return Tokenizer::from_files({{"tokenizer.json", json.dump()}, {"tokenizer_config.json", std::move(config)}},
                               "joins");
}

// What a normaliser or an added token may do to spaces or next to them: words by themselves would have other tokens.
TEST(Prompt, WhatIsNotKnownToCutAtSpacesIsReadWhole) {
  const auto with = [](const char* style, const std::function<void(nlohmann::json&)>& change) {
    auto json = nlohmann::json::parse(read_file(golden_tokenizers / style / "tokenizer.json"));
    change(json);
    return Tokenizer::from_files(
        {{"tokenizer.json", json.dump()},
         {"tokenizer_config.json", read_file(golden_tokenizers / style / "tokenizer_config.json")}},
        style);
  };
  const auto replace = [&](const char* style, const char* what, const char* by) {
    return with(style, [&](nlohmann::json& json) {
      json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", what}}}, {"content", by}};
    });
  };
  EXPECT_TRUE(with("gpt2", [](nlohmann::json&) {}).cuts_at_spaces());
  EXPECT_FALSE(replace("gpt2", " ", "▁").cuts_at_spaces());  // "x, a": GPT-2's expression takes ",▁" together
  EXPECT_FALSE(replace("gpt2", "_", " ").cuts_at_spaces());  // "a_  b": three spaces
  EXPECT_FALSE(
      with("qwen2", [](nlohmann::json& json) { json["added_tokens"][2]["single_word"] = true; }).cuts_at_spaces());
  const auto in_one_piece = [&](bool fuses) {
    return with("unknown", [&](nlohmann::json& json) {
      json["pre_tokenizer"]["split"] = false;
      json["model"]["merges"] = nlohmann::json::array();
      json["model"]["fuse_unk"] = fuses;
    });
  };
  EXPECT_TRUE(in_one_piece(false).cuts_at_spaces());
  EXPECT_FALSE(in_one_piece(true).cuts_at_spaces());  // "é ü": one unknown token
}

// Of an expression that is not known to split at spaces, each prompt is looked at.
TEST(Prompt, RefusesATokenizerThatJoinsOverTheSpacesOfAPrompt) {
  const Tokenizer joins = with_expression("[^x]+|x"), splits = with_expression("\\s*\\S+|\\s+");
  for (const Tokenizer* tokenizer : {&joins, &splits}) {
    EXPECT_FALSE(tokenizer->cuts_at_spaces());
    EXPECT_EQ(tokenizer->piece(tokenizer->encode("a. b", Place::begins)[1]), tokenizer == &joins ? ".\u0120" : ".");
  }
  WordEncoder joining(joins), splitting(splits);
  EXPECT_ERROR(data, "note \"7\": the tokenizer joins what stands before and after a space",
               Prompt(joins, {}).tokens(joining, shoe_note));
  Prompt(joins, {.preset = PromptPreset::released}).tokens(joining, shoe_note);
  for (const PromptPreset preset : {PromptPreset::paper, PromptPreset::released})
    expect_parts_make_the_whole(splits, {shoe_note}, preset);
}

TEST(TextSample, IsBoundedAndDoesNotDependOnTheWay) {
  std::vector<Note> notes(50, shoe_note);
  for (int i = 0; i < 50; ++i) notes[i].title = "title " + std::to_string(i);
  notes[3].content = std::string(1999, 'x') + "\xe7\xac\x94 more";
  TextSample few({10, {}}), reversed({10, {}}), all({100, {}});
  for (int i = 0; i < 50; ++i) {
    few.offer(i, notes[i]);
    reversed.offer(49 - i, notes[49 - i]);
    all.offer(i, notes[i]);
  }
  const auto texts = few.take();
  EXPECT_EQ(texts.size(), 10u);
  EXPECT_EQ(texts, reversed.take());
  const auto whole = all.take();
  ASSERT_EQ(whole.size(), 50u);
  EXPECT_NE(whole[3].find("generate 2 topics of the note. {'title': title 3, 'content': xxx"), std::string::npos);
  EXPECT_NE(whole[3].find("xxx} The compression word is:\" The 2 topics are: run, shoe size"), std::string::npos);
  EXPECT_NE(whole[4].find("The category is: sports"), std::string::npos);
}

}  // namespace
}  // namespace notellm

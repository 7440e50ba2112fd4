#include "data_pipeline/prompt.h"

#include <algorithm>

#include "runtime/error.h"

namespace notellm {
namespace {

// The texts of a preset; "<j>" stands for the number of topics.
struct PresetTexts {
  const char* category_instruction;
  const char* hashtag_instruction;
  // The note part, in this order around title, topics (left out in the hashtag task) and content.
  const char* before_title;
  const char* before_topics;
  const char* before_content;
  const char* after_content;
  const char* category_guidance;
  const char* hashtag_guidance;
  // Outputs.
  const char* before_output;  // before the category and each hashtag
  const char* after_output;   // after the category and the last hashtag
  const char* between;        // after each other hashtag
  const char* between_topics;
  bool space_before;  // title and content go in after a space
};

constexpr PresetTexts paper_texts = {
    "Extract the note information in json format, compress it into one word for recommendation, and generate the "
    "category of the note.",
    "Extract the note information in json format, compress it into one word for recommendation, and generate "
    "<j> topics of the note.",
    " {'title': ",
    ", 'topic': ",
    ", 'content': ",
    "} The compression word is:\"",
    "\". The category is:",
    "\". The <j> topics are:",
    " ",
    "",
    ",",
    ", ",
    true};

constexpr PresetTexts released_texts = {"",
                                        "",
                                        "笔记：{\"标题\":\"",
                                        "\",\"话题\":\"",
                                        "\",\"内容\":\"",
                                        "\"}，压缩为一个词：“",
                                        "”。生成笔记类目：",
                                        "”。生成笔记<j>个话题：",
                                        "",
                                        "。",
                                        "，",
                                        "，",
                                        false};

const PresetTexts& texts_of(PromptPreset preset) {
  return preset == PromptPreset::paper ? paper_texts : released_texts;
}

std::string with_count(std::string text, size_t j) {
  if (const size_t at = text.find("<j>"); at != std::string::npos) text.replace(at, 3, std::to_string(j));
  return text;
}

std::string note_part(const PresetTexts& texts, const Note& note, bool with_topics) {
  std::string text = texts.before_title + note.title;
  if (with_topics) {
    text += texts.before_topics;
    for (size_t i = 0; i < note.hashtags.size(); ++i) text += (i ? texts.between_topics : "") + note.hashtags[i];
  }
  return text + texts.before_content + note.content + texts.after_content;
}

// Where the note part stands: after the instruction, or at the beginning where there is none.
Place note_place(const PresetTexts& texts) { return *texts.category_instruction ? Place::goes_on : Place::begins; }

std::string inner_output(const PresetTexts& texts, const std::string& hashtag) {
  return texts.before_output + hashtag + texts.between;
}
std::string last_output(const PresetTexts& texts, const std::string& label) {
  return texts.before_output + label + texts.after_output;
}

}  // namespace

void PromptConfig::fields(Fields& f) {
  f.add("preset", "paper: English, with instruction; released: Chinese, without", preset,
        {{"paper", PromptPreset::paper}, {"released", PromptPreset::released}});
  f.add("title_tokens", "longer titles are cut", title_tokens, between(0, 1 << 16));
  f.add("content_tokens", "longer contents are cut", content_tokens, between(0, 1 << 16));
  f.add("max_hashtags", "hashtags of a note that are used, as topics and as outputs: the first ones", max_hashtags,
        between(0, 64));
  f.add("max_note_tokens", "bound of the note part: content, hashtags, title are cut further to keep it",
        max_note_tokens, between(1, 1 << 18));
  f.add("max_output_tokens", "a longer category or hashtag is left out", max_output_tokens, between(1, 1 << 16));
}

std::string fold_spaces(std::string_view text) {
  constexpr std::string_view white_space = " \t\r\n\v\f";
  std::string folded;
  folded.reserve(text.size());
  for (size_t begin = text.find_first_not_of(white_space); begin < text.size();) {
    const size_t end = std::min(text.find_first_of(white_space, begin), text.size());
    if (!folded.empty()) folded += ' ';
    folded += text.substr(begin, end - begin);
    begin = text.find_first_not_of(white_space, end);
  }
  return folded;
}

PromptText prompt_text(PromptPreset preset, Task task, const Note& note) {
  const PresetTexts& texts = texts_of(preset);
  const bool hashtags = task == Task::hashtags;
  const size_t j = note.hashtags.size();
  NOTELLM_CHECK(!hashtags || j > 0, "the hashtag task needs a hashtag");
  PromptText text;
  text.instruction = with_count(hashtags ? texts.hashtag_instruction : texts.category_instruction, j);
  text.note = note_part(texts, note, !hashtags);
  text.guidance = with_count(hashtags ? texts.hashtag_guidance : texts.category_guidance, j);
  if (!hashtags) {
    text.output = last_output(texts, note.category);
    return text;
  }
  for (size_t i = 0; i < j; ++i)
    text.output += i + 1 < j ? inner_output(texts, note.hashtags[i]) : last_output(texts, note.hashtags[i]);
  return text;
}

std::vector<std::string> labels_of_output(PromptPreset preset, Task task, std::string_view output) {
  const PresetTexts& texts = texts_of(preset);
  const std::string_view after = texts.after_output, between = texts.between;
  std::string folded = fold_spaces(output);
  if (!after.empty() && folded.ends_with(after)) folded.resize(folded.size() - after.size());
  std::vector<std::string> labels;
  for (size_t begin = 0; begin <= folded.size();) {
    const size_t end = task == Task::hashtags ? std::min(folded.find(between, begin), folded.size()) : folded.size();
    std::string label = fold_spaces(std::string_view(folded).substr(begin, end - begin));
    if (!label.empty()) labels.push_back(std::move(label));
    begin = end + between.size();
  }
  return labels;
}

std::string joined_hashtags(PromptPreset preset, const std::vector<std::string>& hashtags) {
  std::string text;
  for (size_t i = 0; i < hashtags.size(); ++i) text += (i ? texts_of(preset).between_topics : "") + hashtags[i];
  return text;
}

Prompt::Prompt(const Tokenizer& tokenizer, const PromptConfig& config) : config_(config) {
  const PresetTexts& texts = texts_of(config.preset);
  shared_.emb = tokenizer.emb();
  shared_.eos = tokenizer.eos();
  shared_.vocabulary = tokenizer.vocabulary();
  const auto instruction = [&](const std::string& text) {
    std::vector<int32_t> tokens = tokenizer.encode(text, Place::begins);
    if (tokenizer.bos()) tokens.insert(tokens.begin(), *tokenizer.bos());
    return tokens;
  };
  shared_.category_instruction = instruction(texts.category_instruction);
  shared_.category_guidance = tokenizer.encode(texts.category_guidance, Place::after_token);
  for (int j = 1; j <= config.max_hashtags; ++j) {
    shared_.hashtag_instruction.push_back(instruction(with_count(texts.hashtag_instruction, j)));
    shared_.hashtag_guidance.push_back(tokenizer.encode(with_count(texts.hashtag_guidance, j), Place::after_token));
  }
  int least = 0;
  for (const bool with_topics : {false, true}) {
    const auto tokens = tokenizer.encode(note_part(texts, Note{}, with_topics), note_place(texts));
    least = std::max(least, static_cast<int>(tokens.size()));
  }
  if (least > config.max_note_tokens)
    fail(ErrorKind::usage,
         "data.prompt.max_note_tokens: {} is too small: the prompt's own text takes {} tokens with this "
         "tokenizer; set at least {}",
         config.max_note_tokens, least, least + config.title_tokens + config.content_tokens);
}

void Prompt::fit_outputs(WordEncoder& encoder, const std::vector<std::string>& hashtags, Note& note,
                         NoteTokens& tokens) const {
  const PresetTexts& texts = texts_of(config_.preset);
  const auto too_long = [&](const std::vector<int32_t>& output) {
    return static_cast<int>(output.size()) > config_.max_output_tokens;
  };
  if (!note.category.empty()) tokens.category = encoder.encode(last_output(texts, note.category), Place::goes_on);
  tokens.category_left_out = too_long(tokens.category);
  if (tokens.category_left_out) {
    note.category.clear();
    tokens.category.clear();
  }
  for (const std::string& hashtag : hashtags) {
    std::string folded = fold_spaces(hashtag);
    const auto begin = note.hashtags.begin(), end = note.hashtags.end();
    if (static_cast<int>(end - begin) == config_.max_hashtags || std::find(begin, end, folded) != end) {
      ++tokens.hashtags_beyond;
      continue;
    }
    auto inner = encoder.encode(inner_output(texts, folded), Place::goes_on);
    auto last = encoder.encode(last_output(texts, folded), Place::goes_on);
    if (folded.empty() || too_long(inner) || too_long(last)) {
      ++tokens.hashtags_left_out;
      continue;
    }
    tokens.hashtag_inner.push_back(std::move(inner));
    tokens.hashtag_last.push_back(std::move(last));
    note.hashtags.push_back(std::move(folded));
  }
}

void Prompt::fit_note_part(WordEncoder& encoder, Note& note, NoteTokens& tokens) const {
  const PresetTexts& texts = texts_of(config_.preset);
  const Place place = note_place(texts);
  const auto shorten = [&](std::string& text, int64_t over) {
    const auto count =
        static_cast<int64_t>(encoder.encode((texts.space_before ? " " : "") + text, Place::goes_on).size());
    text = std::string(encoder.truncate(text, texts.space_before, std::max<int64_t>(0, count - over)));
  };
  while (true) {
    tokens.category_input = encoder.encode(note_part(texts, note, true), place);
    tokens.hashtag_input = encoder.encode(note_part(texts, note, false), place);
    const int64_t over = static_cast<int64_t>(std::max(tokens.category_input.size(), tokens.hashtag_input.size())) -
                         config_.max_note_tokens;
    if (over <= 0) return;
    tokens.shortened = true;
    if (!note.content.empty()) {
      shorten(note.content, over);
    } else if (!note.hashtags.empty()) {
      note.hashtags.pop_back();
      ++tokens.hashtags_left_out;
    } else {
      NOTELLM_CHECK(!note.title.empty(), "an empty note has {} tokens over the bound", over);
      shorten(note.title, over);
    }
  }
}

void Prompt::require_cuts(const Tokenizer& tokenizer, const Note& note, const NoteTokens& tokens) const {
  using Span = std::span<const int32_t>;
  const auto require = [&](Span first, const std::vector<Span>& others, const std::string& text, Place place) {
    std::vector<int32_t> parts(first.begin(), first.end()), whole = tokenizer.encode(text, place);
    for (const Span& other : others) parts.insert(parts.end(), other.begin(), other.end());
    if (place == Place::begins && tokenizer.bos()) whole.insert(whole.begin(), *tokenizer.bos());
    if (parts != whole)
      fail(ErrorKind::data,
           "note \"{}\": the tokenizer joins what stands before and after a space at which its prompt is cut; take a "
           "tokenizer that splits texts at spaces",
           note.id);
  };
  const size_t j = note.hashtags.size();
  for (const Task task : {Task::category, Task::hashtags}) {
    if (task == Task::hashtags && j == 0) continue;
    const bool hashtags = task == Task::hashtags;
    const PromptText text = prompt_text(config_.preset, task, note);
    require(hashtags ? shared_.hashtag_instruction[j - 1] : Span(shared_.category_instruction),
            {hashtags ? tokens.hashtag_input : tokens.category_input}, text.instruction + text.note, Place::begins);
    // In the other preset, outputs are tokenised by themselves.
    if (config_.preset != PromptPreset::paper) continue;
    std::vector<Span> outputs;
    if (!hashtags && !note.category.empty()) outputs = {tokens.category};
    for (size_t i = 0; hashtags && i < j; ++i)
      outputs.emplace_back((i + 1 < j ? tokens.hashtag_inner : tokens.hashtag_last)[i]);
    require(hashtags ? shared_.hashtag_guidance[j - 1] : Span(shared_.category_guidance), outputs,
            text.guidance + (outputs.empty() ? "" : text.output), Place::after_token);
  }
}

NoteTokens Prompt::tokens(WordEncoder& encoder, const Note& note, Note* fitted) const {
  const PresetTexts& texts = texts_of(config_.preset);
  NoteTokens tokens;
  Note fit{note.id, note.title, fold_spaces(note.content), fold_spaces(note.category), {}};
  fit_outputs(encoder, note.hashtags, fit, tokens);
  const auto cut = [&](std::string& text, int64_t limit) {
    const size_t size = text.size();
    text.resize(encoder.truncate(text, texts.space_before, limit).size());
    return text.size() < size;
  };
  tokens.title_cut = cut(fit.title, config_.title_tokens);
  tokens.content_cut = cut(fit.content, config_.content_tokens);
  fit_note_part(encoder, fit, tokens);
  tokens.hashtag_inner.resize(fit.hashtags.size());
  tokens.hashtag_last.resize(fit.hashtags.size());
  if (!encoder.tokenizer().cuts_at_spaces()) require_cuts(encoder.tokenizer(), fit, tokens);
  if (fitted) *fitted = std::move(fit);
  return tokens;
}

}  // namespace notellm

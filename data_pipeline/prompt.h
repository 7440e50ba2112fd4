// The prompts: from a note to the tokens of its parts.
//
// A note's sequence is   [BOS] instruction, note part [EMB] guidance, output [EOS].   The presets (docs/notellm.md §2):
//   paper     Extract the note information in json format, compress it into one word for recommendation, and
//             generate the category of the note. {'title': T, 'topic': A, B, 'content': C} The compression word
//             is:"[EMB]". The category is: CATEGORY
//             … and generate 2 topics of the note. {'title': T, 'content': C} The compression word is:"[EMB]". The 2
//             topics are: A, B
//   released  笔记：{"标题":"T","话题":"A，B","内容":"C"}，压缩为一个词：“[EMB]”。生成笔记类目：CATEGORY。
//             笔记：{"标题":"T","内容":"C"}，压缩为一个词：“[EMB]”。生成笔记2个话题：A，B。
// Texts go in as they are, nothing is escaped: braces, quotes and newlines of a title stay. Only in contents,
// categories and hashtags runs of white space (space, tab, newline, …) become one space, none at the ends.
//
// The tokens are those of the whole text before [EMB], and of the whole text after it, as the tokenizer gives them:
// `paper` is cut into its parts at spaces only, where no token goes over. In `released` no space stands before the
// output: there guidance and output (and each hashtag) are tokenised each by itself, which is what a model that is
// asked to go on after the guidance sees. BOS is left out where the tokenizer has none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data_pipeline/batch.h"
#include "data_pipeline/note_table.h"
#include "data_pipeline/notes.h"
#include "data_pipeline/tokenizer.h"
#include "data_pipeline/word_encoder.h"
#include "runtime/config.h"

namespace notellm {

enum class PromptPreset { paper, released };

struct PromptConfig {
  PromptPreset preset = PromptPreset::paper;
  int title_tokens = 20;       // longer titles are cut (WordEncoder::truncate)
  int content_tokens = 80;     // longer contents are cut
  int max_hashtags = 3;        // the first ones of a note, as topics and as outputs
  int max_note_tokens = 160;   // of the note part: then content, hashtags and title, in this order, are cut further
  int max_output_tokens = 32;  // a longer category or hashtag is left out
  void fields(Fields& fields);
};

// A prompt as text. note holds everything from after the instruction up to [EMB]; output is without EOS.
struct PromptText {
  std::string instruction, note, guidance, output;
};
// The prompt of a note for a task, nothing cut. Task::hashtags: all of note.hashtags are the output (at least one).
PromptText prompt_text(PromptPreset preset, Task task, const Note& note);

// The tokens of one note's own parts, as in NoteTable, and what was cut for them.
struct NoteTokens {
  std::vector<int32_t> category_input, hashtag_input;
  std::vector<int32_t> category;  // empty: no category
  std::vector<std::vector<int32_t>> hashtag_inner, hashtag_last;
  bool title_cut = false, content_cut = false;  // to title_tokens, content_tokens
  bool shortened = false;                       // cut further to max_note_tokens
  bool category_left_out = false;               // over max_output_tokens
  int hashtags_left_out = 0;                    // over max_output_tokens, white space only, or for max_note_tokens
  int hashtags_beyond = 0;                      // after the first max_hashtags, or twice in the note
};

class Prompt {
 public:
  // Throws Error(usage) when max_note_tokens is too small for the preset's own text.
  Prompt(const Tokenizer& tokenizer, const PromptConfig& config);

  // What all notes share; j = 1 … max_hashtags.
  const PromptTokens& shared() const { return shared_; }
  // Thread-safe with one encoder a thread, of the tokenizer given to the constructor. `fitted` gets the note as it went
  // in: white space folded, cut, hashtags chosen; prompt_text(preset, task, *fitted) is the text of the tokens.
  // Throws Error(data) where the tokenizer is not known to cut at spaces (Tokenizer::cuts_at_spaces) and the parts of
  // this note's prompts, with all its hashtags, are not the tokens of the whole.
  NoteTokens tokens(WordEncoder& encoder, const Note& note, Note* fitted = nullptr) const;

 private:
  void fit_outputs(WordEncoder& encoder, const std::vector<std::string>& hashtags, Note& note,
                   NoteTokens& tokens) const;
  void fit_note_part(WordEncoder& encoder, Note& note, NoteTokens& tokens) const;
  void require_cuts(const Tokenizer& tokenizer, const Note& note, const NoteTokens& tokens) const;

  PromptConfig config_;
  PromptTokens shared_;
};

// Runs of white space as one space, none at the ends.
std::string fold_spaces(std::string_view text);

}  // namespace notellm

// How good generated categories and hashtags are, beside methods that need no model.
//
// What is asked: notes that are in no training pair. Training has seen neither their texts nor their labels (it draws
// notes from training pairs only), so that this is about new notes. What baselines know are the labels of the notes in
// training pairs, which are those that training was given.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/note_table.h"
#include "evaluation/note_generator.h"
#include "evaluation/text_metrics.h"
#include "runtime/mesh.h"

namespace notellm {

// Rows of the note table.
struct AskedLabels {
  std::string slice;                        // clicked: notes of the pool; unclicked: the others
  std::vector<int32_t> category, hashtags;  // notes to ask, which have the label
  std::vector<uint8_t> known;               // [notes] 1: in a training pair
};
// Each slice that has notes to ask; at most `most` for each task, every k-th, the same at every call. Notes that nobody
// clicked are often of another kind than those that training has seen.
std::vector<AskedLabels> ask_labels(const NoteTable& notes, std::span<const Pair> train, int64_t most);

// A method's answers, in the order of AskedLabels.
struct LabelMethod {
  std::string name;
  std::vector<std::string> categories;             // empty: none
  std::vector<std::vector<std::string>> hashtags;  // none: the method is for categories only
};

// For categories: the most frequent one of the known notes. For hashtags, as many of their most frequent ones as the
// note has. Of equally frequent ones the first in the order of text.
LabelMethod majority_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader);
// Those of the known note with the label that is nearest by TF-IDF (evaluation/tfidf.h; of equally near ones the
// first). Throws as TfIdf.
LabelMethod tfidf_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                         const std::filesystem::path& notes_file, const std::string& title_template);
// The model's, greedily: for hashtags it is asked for as many as the note has. All ranks call it, with a generator of
// their tensor group, and get the same. closed: categories out of this set only, and no hashtags; or null.
LabelMethod generated_labels(Stream& stream, Mesh& mesh, NoteGenerator& generator, const Weights& weights,
                             const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                             const TokenTrie* closed, const std::string& name);

struct LabelScores {
  std::string method;
  CategoryScores category;
  bool of_hashtags;  // the rest holds
  double bleu;
  Rouge rouge;
  SetScores sets;
};
struct GenerationQuality {
  std::string slice;
  int64_t category_notes = 0, hashtag_notes = 0;
  std::vector<LabelScores> methods;
};
// The closed set are the categories of all notes of the table. BLEU and ROUGE are of the hashtags in one text, with the
// words that the prompts' language has.
GenerationQuality score_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                               std::span<const LabelMethod> methods);

// A table for people.
std::string format_quality(const GenerationQuality& quality);

}  // namespace notellm

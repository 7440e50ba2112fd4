// What a trained model has to beat: ranks of the same questions by methods that need no model.
//
// Each function returns the rank of each question's target (evaluation/ranking.h), the same on any number of threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/clicks.h"
#include "data_pipeline/note_table.h"
#include "evaluation/ranking.h"

namespace notellm {

// score(query, x) = training clicks of x
std::vector<Rank> popularity_ranks(const NoteTable& notes, const Pool& pool, std::span<const Question> questions);

// Notes of the query's category first, then all others; each by training clicks. A query without category has no such
// notes.
std::vector<Rank> category_popularity_ranks(const NoteTable& notes, const Pool& pool,
                                            std::span<const Question> questions);

// score(query, x) = cosine of the two notes' TF-IDF vectors (evaluation/tfidf.h), with the pool's document frequencies.
// Throws as TfIdf.
std::vector<Rank> tfidf_ranks(const std::filesystem::path& notes_file, const std::string& title_template,
                              const Pool& pool, std::span<const Question> questions);

// s(query→x) of the training users for every x that any of them clicked after the query: without the bounds and the
// best-t cut that make training pairs, which would leave most targets unscored. In order of query. memory_bytes: as
// for cooccurrence().
std::vector<Pair> training_scores(const ClickLists& lists, const Pool& pool, std::span<const Question> questions,
                                  int64_t memory_bytes);

// score(query, x) = the score of the pair (rows of the note table) in `scores`, which are in order of query; 0 for all
// other notes, which are thus ties.
std::vector<Rank> cooccurrence_ranks(const Pool& pool, std::span<const Question> questions,
                                     std::span<const Pair> scores);

// The same, and notes of the same score, most of them with none, as in category_popularity_ranks: what a platform
// without a model would do.
std::vector<Rank> cooccurrence_popularity_ranks(const NoteTable& notes, const Pool& pool,
                                                std::span<const Question> questions, std::span<const Pair> scores);

}  // namespace notellm

// How alike the texts of notes are, by the words that they share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace notellm {

// A sparse matrix by rows: row i has entries first[i] … first[i + 1] - 1.
struct SparseRows {
  std::vector<int64_t> first = {0};
  std::vector<int32_t> column;
  std::vector<float> value;
  int64_t rows() const { return static_cast<int64_t>(first.size()) - 1; }
};

// Notes as TF-IDF vectors: count of a word in title and content · (ln((1 + N) / (1 + df)) + 1), df = how many of the N
// notes have it (smooth idf, as scikit-learn's TfidfVectorizer), normalised. A word is a longest run of two or more
// bytes that are ASCII letters (lower-cased), digits, '_' or part of a character beyond ASCII; a language that writes
// without spaces gets long words, and with them a weak baseline.
class TfIdf {
 public:
  // wanted [notes of the file]: 1: a note is one of the N, which are numbered in the file's order. The texts are read
  // again from notes.jsonl, because shards hold tokens only. Throws Error(data) when the file does not have as many
  // notes as `wanted`; else as NoteReader.
  TfIdf(const std::filesystem::path& notes_file, const std::string& title_template, std::span<const uint8_t> wanted);

  int64_t size() const { return vectors_.rows(); }
  // scores[x] = cosine of notes `query` and x, [N]. Notes with equal words get equal scores: each is summed in the
  // order of the query's words. Thread-safe.
  void scores(int64_t query, std::span<float> scores) const;

 private:
  SparseRows vectors_;     // [notes, words]
  SparseRows notes_with_;  // its transpose
};

}  // namespace notellm

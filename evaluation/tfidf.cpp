#include "evaluation/tfidf.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <unordered_map>

#include "data_pipeline/notes.h"
#include "runtime/error.h"

namespace notellm {
namespace {

bool in_word(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x80 || (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
         byte == '_';
}

// Calls use(word) for each word of the text; `word` is scratch.
template <class Use>
void for_each_word(std::string_view text, std::string& word, Use use) {
  word.clear();
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && in_word(text[i])) {
      word += text[i] >= 'A' && text[i] <= 'Z' ? static_cast<char>(text[i] - 'A' + 'a') : text[i];
      continue;
    }
    if (word.size() >= 2) use(word);
    word.clear();
  }
}

SparseRows transpose(const SparseRows& m, int64_t columns) {
  SparseRows t;
  t.first.assign(columns + 1, 0);
  for (const int32_t c : m.column) ++t.first[c + 1];
  for (int64_t c = 0; c < columns; ++c) t.first[c + 1] += t.first[c];
  t.column.resize(m.column.size());
  t.value.resize(m.value.size());
  std::vector<int64_t> next(t.first.begin(), t.first.end() - 1);
  for (int64_t row = 0; row < m.rows(); ++row)
    for (int64_t e = m.first[row]; e < m.first[row + 1]; ++e) {
      const int64_t place = next[m.column[e]]++;
      t.column[place] = static_cast<int32_t>(row);
      t.value[place] = m.value[e];
    }
  return t;
}

// The words of the pool's notes: rows are pool rows, columns are words by first appearance, values their counts.
class WordCounter {
 public:
  void add(const Note& note) {
    std::vector<int32_t> words;
    const auto use = [&](const std::string& word) {
      words.push_back(ids_.try_emplace(word, static_cast<int32_t>(ids_.size())).first->second);
    };
    for_each_word(note.title, scratch_, use);
    for_each_word(note.content, scratch_, use);
    std::sort(words.begin(), words.end());
    for (size_t i = 0; i < words.size(); ++i) {
      if (i > 0 && words[i] == words[i - 1]) {
        counts_.value.back() += 1;
        continue;
      }
      counts_.column.push_back(words[i]);
      counts_.value.push_back(1);
    }
    counts_.first.push_back(static_cast<int64_t>(counts_.column.size()));
  }

  int64_t words() const { return static_cast<int64_t>(ids_.size()); }
  SparseRows take() { return std::move(counts_); }

 private:
  std::unordered_map<std::string, int32_t> ids_;
  std::string scratch_;
  SparseRows counts_;
};

WordCounter count_words(const std::filesystem::path& file, const std::string& title_template,
                        std::span<const uint8_t> wanted) {
  WordCounter counter;
  NoteReader reader(file, title_template);
  std::vector<Note> batch;
  int64_t row = 0;
  const auto expected = std::ssize(wanted);
  while (reader.read(batch))
    for (const Note& note : batch) {
      if (row < expected && wanted[row]) counter.add(note);
      ++row;
    }
  if (row != expected)
    fail(ErrorKind::data, "{} has {} notes, the shards have {}: prepare again, or name the file that the shards are of",
         file.string(), row, expected);
  return counter;
}

// Counts become normalised TF-IDF weights.
void weight(SparseRows& counts, int64_t words) {
  std::vector<int64_t> frequency(words, 0);
  for (const int32_t word : counts.column) ++frequency[word];
  const double documents = 1.0 + static_cast<double>(counts.rows());
  for (size_t e = 0; e < counts.value.size(); ++e)
    counts.value[e] *= static_cast<float>(std::log(documents / (1.0 + frequency[counts.column[e]])) + 1.0);
  for (int64_t row = 0; row < counts.rows(); ++row) {
    double squares = 0;
    for (int64_t e = counts.first[row]; e < counts.first[row + 1]; ++e)
      squares += static_cast<double>(counts.value[e]) * counts.value[e];
    const double norm = std::sqrt(squares);
    for (int64_t e = counts.first[row]; e < counts.first[row + 1]; ++e)
      counts.value[e] = static_cast<float>(counts.value[e] / norm);
  }
}

}  // namespace

TfIdf::TfIdf(const std::filesystem::path& notes_file, const std::string& title_template,
             std::span<const uint8_t> wanted) {
  WordCounter counter = count_words(notes_file, title_template, wanted);
  vectors_ = counter.take();
  weight(vectors_, counter.words());
  notes_with_ = transpose(vectors_, counter.words());
}

void TfIdf::scores(int64_t query, std::span<float> scores) const {
  std::ranges::fill(scores, 0.0f);
  for (int64_t e = vectors_.first[query]; e < vectors_.first[query + 1]; ++e) {
    const int32_t word = vectors_.column[e];
    for (int64_t n = notes_with_.first[word]; n < notes_with_.first[word + 1]; ++n)
      scores[notes_with_.column[n]] += vectors_.value[e] * notes_with_.value[n];
  }
}

}  // namespace notellm

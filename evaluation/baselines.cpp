#include "evaluation/baselines.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "data_pipeline/cooccurrence.h"
#include "data_pipeline/notes.h"

namespace notellm {
namespace {

// Notes of a set by their clicks.
class ClickCounts {
 public:
  void add(int32_t clicks) { sorted_.push_back(clicks); }
  void sort() { std::sort(sorted_.begin(), sorted_.end()); }
  int32_t size() const { return static_cast<int32_t>(sorted_.size()); }
  // How many have more clicks, and how many the same.
  Rank against(int32_t clicks) const {
    const auto [low, high] = std::equal_range(sorted_.begin(), sorted_.end(), clicks);
    return {static_cast<int32_t>(sorted_.end() - high), static_cast<int32_t>(high - low)};
  }

 private:
  std::vector<int32_t> sorted_;
};

ClickCounts counts_of_pool(const NoteTable& notes, const Pool& pool) {
  ClickCounts counts;
  for (const int32_t note : pool.notes) counts.add(notes.clicks[note]);
  counts.sort();
  return counts;
}

// The rank of the target by clicks in a set that has it, and has the query.
Rank rank_by_clicks(const ClickCounts& counts, int32_t query_clicks, int32_t target_clicks) {
  Rank rank = counts.against(target_clicks);
  rank.better -= query_clicks > target_clicks;
  rank.ties -= 1 + (query_clicks == target_clicks);
  return rank;
}

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

// A sparse matrix by rows: row i has entries first[i] … first[i + 1] - 1.
struct SparseRows {
  std::vector<int64_t> first = {0};
  std::vector<int32_t> column;
  std::vector<float> value;
  int64_t rows() const { return static_cast<int64_t>(first.size()) - 1; }
};

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

WordCounter count_words(const std::filesystem::path& file, const std::string& title_template, const Pool& pool) {
  WordCounter counter;
  NoteReader reader(file, title_template);
  std::vector<Note> batch;
  int64_t row = 0;
  const int64_t expected = static_cast<int64_t>(pool.row_of.size());
  while (reader.read(batch))
    for (const Note& note : batch) {
      if (row < expected && pool.row_of[row] >= 0) counter.add(note);
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

// Indices of the questions, those of one query together.
std::vector<std::vector<int64_t>> questions_by_query(const Pool& pool, std::span<const Question> questions) {
  std::vector<std::vector<int64_t>> of_query(pool.size());
  for (size_t i = 0; i < questions.size(); ++i) of_query[questions[i].query].push_back(static_cast<int64_t>(i));
  return of_query;
}

}  // namespace

std::vector<Rank> popularity_ranks(const NoteTable& notes, const Pool& pool, std::span<const Question> questions) {
  const ClickCounts counts = counts_of_pool(notes, pool);
  std::vector<Rank> ranks;
  for (const Question& q : questions)
    ranks.push_back(rank_by_clicks(counts, notes.clicks[pool.notes[q.query]], notes.clicks[pool.notes[q.target]]));
  return ranks;
}

std::vector<Rank> category_popularity_ranks(const NoteTable& notes, const Pool& pool,
                                            std::span<const Question> questions) {
  const ClickCounts all = counts_of_pool(notes, pool);
  std::vector<ClickCounts> by_category(notes.category_names.size());
  for (const int32_t note : pool.notes)
    if (notes.category_id[note] >= 0) by_category[notes.category_id[note]].add(notes.clicks[note]);
  for (ClickCounts& counts : by_category) counts.sort();

  std::vector<Rank> ranks;
  for (const Question& q : questions) {
    const int32_t query = pool.notes[q.query], target = pool.notes[q.target];
    const int32_t category = notes.category_id[query];
    if (category < 0 || category == notes.category_id[target]) {
      ranks.push_back(
          rank_by_clicks(category < 0 ? all : by_category[category], notes.clicks[query], notes.clicks[target]));
      continue;
    }
    // Another category: after the whole category but the query, among the notes outside of it.
    const Rank everywhere = all.against(notes.clicks[target]);
    const Rank inside = by_category[category].against(notes.clicks[target]);
    ranks.push_back(
        {by_category[category].size() - 1 + everywhere.better - inside.better, everywhere.ties - inside.ties - 1});
  }
  return ranks;
}

std::vector<Rank> tfidf_ranks(const std::filesystem::path& notes_file, const std::string& title_template,
                              const Pool& pool, std::span<const Question> questions) {
  WordCounter counter = count_words(notes_file, title_template, pool);
  const int64_t words = counter.words();
  SparseRows vectors = counter.take();
  weight(vectors, words);
  const SparseRows notes_with = transpose(vectors, words);
  const std::vector<std::vector<int64_t>> of_query = questions_by_query(pool, questions);

  // Notes with equal words get equal scores: each score is summed in the order of the query's words.
  std::vector<Rank> ranks(questions.size());
#pragma omp parallel
  {
    std::vector<float> scores(pool.size());
#pragma omp for schedule(dynamic, 16)
    for (int64_t query = 0; query < pool.size(); ++query) {
      if (of_query[query].empty()) continue;
      std::fill(scores.begin(), scores.end(), 0.0f);
      for (int64_t e = vectors.first[query]; e < vectors.first[query + 1]; ++e) {
        const int32_t word = vectors.column[e];
        for (int64_t n = notes_with.first[word]; n < notes_with.first[word + 1]; ++n)
          scores[notes_with.column[n]] += vectors.value[e] * notes_with.value[n];
      }
      for (const int64_t i : of_query[query]) ranks[i] = rank_in_row(scores, questions[i]);
    }
  }
  return ranks;
}

std::vector<Pair> training_scores(const ClickLists& lists, const Pool& pool, std::span<const Question> questions,
                                  int64_t memory_bytes) {
  std::vector<uint8_t> asked(pool.row_of.size(), 0);
  for (const Question& q : questions) asked[pool.notes[q.query]] = 1;
  std::vector<Pair> scores;
  Communicator self = Communicator::self();
  const CooccurrenceConfig everything{
      .lower = 0, .upper = std::numeric_limits<double>::infinity(), .top = static_cast<int>(pool.size())};
  cooccurrence(self, lists, Split::train, everything, memory_bytes, [&](std::span<const Pair> pairs) {
    for (const Pair& pair : pairs)
      if (asked[pair.query]) scores.push_back(pair);
  });
  return scores;
}

std::vector<Rank> cooccurrence_ranks(const Pool& pool, std::span<const Question> questions,
                                     std::span<const Pair> scores) {
  const auto by_query = [](const Pair& a, const Pair& b) { return a.query < b.query; };
  NOTELLM_CHECK(std::is_sorted(scores.begin(), scores.end(), by_query), "scores are not in order of query");
  std::vector<Rank> ranks;
  for (const Question& q : questions) {
    const int32_t query = pool.notes[q.query], target = pool.notes[q.target];
    const auto [begin, end] = std::equal_range(scores.begin(), scores.end(), Pair{query, 0, 0}, by_query);
    const auto own = std::find_if(begin, end, [&](const Pair& pair) { return pair.target == target; });
    const float score = own == end ? 0.0f : own->score;
    Rank rank;
    int32_t scored = 0;
    for (auto pair = begin; pair != end; ++pair) {
      if (pair->target == target || pool.row_of[pair->target] < 0) continue;
      ++scored;
      rank.better += pair->score > score;
      rank.ties += pair->score == score;
    }
    if (score == 0) rank.ties += static_cast<int32_t>(pool.size()) - 2 - scored;
    ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace notellm

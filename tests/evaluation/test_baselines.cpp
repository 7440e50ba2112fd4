#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include "evaluation/baselines.h"
#include "runtime/random.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

void expect_equal(const std::vector<Rank>& ranks, const std::vector<Rank>& expected) {
  ASSERT_EQ(ranks.size(), expected.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    EXPECT_EQ(ranks[i].better, expected[i].better) << "question " << i;
    EXPECT_EQ(ranks[i].ties, expected[i].ties) << "question " << i;
  }
}

// Every ordered pair of the pool's notes.
std::vector<Question> all_questions(const Pool& pool) {
  std::vector<Question> questions;
  for (int32_t q = 0; q < pool.size(); ++q)
    for (int32_t t = 0; t < pool.size(); ++t)
      if (q != t) questions.push_back({q, t});
  return questions;
}

// Ranks by a function score(query, x) of note rows.
template <class Score>
std::vector<Rank> ranks_by(const Pool& pool, const std::vector<Question>& questions, Score score) {
  std::vector<Rank> ranks;
  for (const Question& q : questions) {
    std::vector<float> row;
    for (const int32_t note : pool.notes) row.push_back(static_cast<float>(score(pool.notes[q.query], note)));
    ranks.push_back(rank_in_row(row, q));
  }
  return ranks;
}

struct Fixture {
  NoteTable notes = test::tiny_data(60).notes;
  Pool pool;
  std::vector<Question> questions;
  Fixture() {
    for (int note = 0; note < 60; note += 7) notes.in_pool[note] = 0;
    pool = make_pool(notes);
    questions = all_questions(pool);
  }
};

TEST(Popularity, IsByTrainingClicks) {
  const Fixture f;
  expect_equal(popularity_ranks(f.notes, f.pool, f.questions),
               ranks_by(f.pool, f.questions, [&](int32_t, int32_t x) { return f.notes.clicks[x]; }));
}

TEST(CategoryPopularity, SameCategoryFirst) {
  const Fixture f;
  const auto score = [&](int32_t query, int32_t x) {
    const bool same = f.notes.category_id[query] >= 0 && f.notes.category_id[query] == f.notes.category_id[x];
    return 1000 * same + f.notes.clicks[x];
  };
  expect_equal(category_popularity_ranks(f.notes, f.pool, f.questions), ranks_by(f.pool, f.questions, score));
}

TEST(Cooccurrence, ScoredNotesFirstTheRestTies) {
  NoteTable notes;
  notes.ids = {"a", "b", "c", "d", "e", "f"};
  notes.in_pool = {1, 1, 1, 0, 1, 1};
  const Pool pool = make_pool(notes);  // pool rows of a b c e f: 0 1 2 3 4
  const std::vector<Pair> scores = {{0, 1, 0.5f}, {0, 2, 0.5f}, {0, 3, 9.0f}, {0, 4, 0.25f}, {2, 0, 1.0f}};
  // d is not in the pool. Of a: b and c tie, then e, then f. Of b: nothing is known. Of c: a.
  expect_equal(
      cooccurrence_ranks(pool, std::vector<Question>{{0, 1}, {0, 2}, {0, 3}, {0, 4}, {1, 0}, {2, 0}, {2, 1}}, scores),
      {{0, 1}, {0, 1}, {2, 0}, {3, 0}, {0, 3}, {0, 0}, {1, 2}});
  EXPECT_ERROR(internal, "order of query", cooccurrence_ranks(pool, {}, std::vector<Pair>{{2, 0, 1.0f}, {0, 1, 0.5f}}));
}

TEST(CooccurrencePopularity, NotesOfTheSameScoreByPopularity) {
  const Fixture f;
  std::vector<Pair> scores;  // of a third of the pairs, half of them the same; notes outside of the pool have some too
  for (int32_t query = 0; query < f.notes.size(); ++query)
    for (int32_t x = 0; x < f.notes.size(); ++x)
      if (const int32_t n = (7 * query + 3 * x) % 12; query != x && n < 4) scores.push_back({query, x, 1.0f + n / 2});
  const auto score = [&](int32_t query, int32_t x) {
    const auto own = std::ranges::find_if(scores, [&](const Pair& p) { return p.query == query && p.target == x; });
    const bool same = f.notes.category_id[query] >= 0 && f.notes.category_id[query] == f.notes.category_id[x];
    return 100000 * (own == scores.end() ? 0 : own->score) + 1000 * same + f.notes.clicks[x];
  };
  expect_equal(cooccurrence_popularity_ranks(f.notes, f.pool, f.questions, scores),
               ranks_by(f.pool, f.questions, score));
  EXPECT_ERROR(internal, "order of query",
               cooccurrence_popularity_ranks(f.notes, f.pool, {}, std::vector<Pair>{{2, 0, 1.0f}, {0, 1, 0.5f}}));
}

TEST(TrainingScores, AreOfAllNotesClickedLater) {
  const test::TempDir folder;
  std::ofstream(folder / "clicks.tsv") << "u\ta b c\nv\ta c\nw\tc a\n";
  NoteIndex index;
  for (const char* id : {"a", "b", "c"}) index.add(id);
  ClicksConfig config;
  config.files = {(folder / "clicks.tsv").string()};
  config.heldout_share = 0;
  config.stop_share = 1;
  const ClickLists lists = read_clicks(config, index, folder.path(), 1 << 26);

  NoteTable notes;
  notes.ids = {"a", "b", "c"};
  notes.in_pool = {1, 1, 1};
  const std::vector<Pair> scores =
      training_scores(lists, make_pool(notes), std::vector<Question>{{0, 1}, {2, 1}}, 1 << 26);
  const std::vector<Pair> expected = {{0, 2, 1.0f / 3 + 0.5f}, {0, 1, 1.0f / 3}, {2, 0, 0.5f}};  // b is never a query
  ASSERT_EQ(scores.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(scores[i].query, expected[i].query);
    EXPECT_EQ(scores[i].target, expected[i].target);
    EXPECT_FLOAT_EQ(scores[i].score, expected[i].score);
  }
}

std::string write_notes(const test::TempDir& folder, const std::vector<std::pair<std::string, std::string>>& texts) {
  std::ofstream file(folder / "notes.jsonl");
  for (size_t i = 0; i < texts.size(); ++i)
    file << R"({"id": ")" << i << R"(", "title": ")" << texts[i].first << R"(", "content": ")" << texts[i].second
         << "\"}\n";
  return (folder / "notes.jsonl").string();
}

Pool pool_without(int count, int left_out) {
  NoteTable notes;
  notes.ids.resize(count);
  notes.in_pool.assign(count, 1);
  if (left_out >= 0) notes.in_pool[left_out] = 0;
  return make_pool(notes);
}

// Cosines to note 0 by scikit-learn 1.9.1, TfidfVectorizer() on notes 0, 1, 2, 4, 5 (note 3 is outside of the pool):
// 0.7066 (1), 0.1263 (2), 0.1263 (4), 0 (5).
TEST(Tfidf, HandCase) {
  const test::TempDir folder;
  const std::string file = write_notes(folder, {{"Red APPLE", "sweet red fruit, a fruit"},
                                                {"red apple!", "fruit-tree"},
                                                {"green", "apple x"},
                                                {"red", "red fruit outside"},
                                                {"x x", "GREEN: apple"},
                                                {"Motor", "wheel"}});
  const Pool pool = pool_without(6, 3);
  expect_equal(
      tfidf_ranks(file, "{title}", pool, std::vector<Question>{{0, 1}, {0, 2}, {0, 3}, {0, 4}, {2, 3}, {4, 0}}),
      {{0, 0}, {1, 1}, {1, 1}, {3, 0}, {0, 0}, {0, 3}});
}

TEST(Tfidf, RefusesNotesOfAnotherNumber) {
  const test::TempDir folder;
  const std::string file = write_notes(folder, {{"one", "word"}, {"two", "words"}});
  EXPECT_ERROR(data, "has 2 notes, the shards have 3", tfidf_ranks(file, "{title}", pool_without(3, -1), {}));
  EXPECT_ERROR(data, "has 2 notes, the shards have 1", tfidf_ranks(file, "{title}", pool_without(1, -1), {}));
}

// Dense cosines in double by the formula in the header, from words given as numbers.
std::vector<std::vector<double>> plain_cosines(const std::vector<std::vector<int>>& documents, int words) {
  std::vector<double> frequency(words, 0);
  std::vector<std::vector<double>> vectors;
  for (const auto& document : documents) {
    std::vector<double>& vector = vectors.emplace_back(words, 0.0);
    for (const int word : document) vector[word] += 1;
    for (int word = 0; word < words; ++word) frequency[word] += vector[word] > 0;
  }
  for (auto& vector : vectors) {
    double squares = 0;
    for (int word = 0; word < words; ++word) {
      vector[word] *= std::log((1.0 + documents.size()) / (1.0 + frequency[word])) + 1;
      squares += vector[word] * vector[word];
    }
    for (double& value : vector) value /= std::sqrt(squares);
  }
  std::vector<std::vector<double>> cosines(vectors.size(), std::vector<double>(vectors.size()));
  for (size_t a = 0; a < vectors.size(); ++a)
    for (size_t b = 0; b < vectors.size(); ++b)
      for (int word = 0; word < words; ++word) cosines[a][b] += vectors[a][word] * vectors[b][word];
  return cosines;
}

// f32 cosines of at most 12 words differ from the double ones by less than 24 roundings of 2^-24 of values up to 1:
// a rank may differ only by notes whose cosine is that close to the target's.
TEST(Tfidf, IsWhatDenseVectorsGive) {
  const int count = 80, words = 30;
  std::vector<std::pair<std::string, std::string>> texts;
  std::vector<std::vector<int>> documents(count);
  for (int note = 0; note < count; ++note) {
    std::string text;
    for (uint64_t i = 0; i < 1 + random_bits(1, note, 100) % 12; ++i) {
      const int word = static_cast<int>(random_bits(1, note, i) % words);
      documents[note].push_back(word);
      text += fmt::format(" w{}", word);
    }
    texts.emplace_back(note % 2 ? text : "", note % 2 ? "" : text);
  }
  const test::TempDir folder;
  const Pool pool = pool_without(count, -1);
  const std::vector<Question> questions = all_questions(pool);
  const std::vector<Rank> ranks = tfidf_ranks(write_notes(folder, texts), "{title}", pool, questions);
  const auto cosines = plain_cosines(documents, words);
  const double error = 24 * std::pow(2.0, -24);
  for (size_t i = 0; i < questions.size(); ++i) {
    int surely = 0, surely_or_about = 0;
    const auto [query, target] = questions[i];
    for (int x = 0; x < count; ++x) {
      if (x == query || x == target) continue;
      surely += cosines[query][x] > cosines[query][target] + 2 * error;
      surely_or_about += cosines[query][x] >= cosines[query][target] - 2 * error;
    }
    ASSERT_GE(ranks[i].better, surely);
    ASSERT_LE(ranks[i].better + ranks[i].ties, surely_or_about);
  }
}

}  // namespace
}  // namespace notellm

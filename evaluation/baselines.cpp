#include "evaluation/baselines.h"

#include <algorithm>
#include <limits>

#include "data_pipeline/cooccurrence.h"
#include "evaluation/tfidf.h"

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

void require_order(std::span<const Pair> scores) {
  NOTELLM_CHECK(std::ranges::is_sorted(scores, {}, &Pair::query), "scores are not in order of query");
}

// Of scores in order of query those of one.
std::span<const Pair> scores_of(std::span<const Pair> scores, int32_t query) {
  const auto found = std::ranges::equal_range(scores, query, {}, &Pair::query);
  return {found.begin(), found.end()};
}

float score_of(std::span<const Pair> of_query, int32_t target) {
  const auto own = std::ranges::find(of_query, target, &Pair::target);
  return own == of_query.end() ? 0.0f : own->score;
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
  std::vector<uint8_t> in_pool;
  for (const int32_t row : pool.row_of) in_pool.push_back(row >= 0);
  const TfIdf texts(notes_file, title_template, in_pool);
  const std::vector<std::vector<int64_t>> of_query = questions_by_query(pool, questions);

  std::vector<Rank> ranks(questions.size());
#pragma omp parallel
  {
    std::vector<float> scores(pool.size());
#pragma omp for schedule(dynamic, 16)
    for (int64_t query = 0; query < pool.size(); ++query) {
      if (of_query[query].empty()) continue;
      texts.scores(query, scores);
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
  require_order(scores);
  std::vector<Rank> ranks;
  for (const Question& q : questions) {
    const int32_t target = pool.notes[q.target];
    const std::span<const Pair> of_query = scores_of(scores, pool.notes[q.query]);
    const float score = score_of(of_query, target);
    Rank rank;
    int32_t scored = 0;
    for (const Pair& pair : of_query) {
      if (pair.target == target || pool.row_of[pair.target] < 0) continue;
      ++scored;
      rank.better += pair.score > score;
      rank.ties += pair.score == score;
    }
    if (score == 0) rank.ties += static_cast<int32_t>(pool.size()) - 2 - scored;
    ranks.push_back(rank);
  }
  return ranks;
}

std::vector<Rank> cooccurrence_popularity_ranks(const NoteTable& notes, const Pool& pool,
                                                std::span<const Question> questions, std::span<const Pair> scores) {
  require_order(scores);
  std::vector<Rank> ranks = category_popularity_ranks(notes, pool, questions);
  for (size_t i = 0; i < questions.size(); ++i) {
    const int32_t query = pool.notes[questions[i].query], target = pool.notes[questions[i].target];
    const auto popularity = [&](int32_t note) {
      const int32_t category = notes.category_id[query];
      return std::pair(category >= 0 && notes.category_id[note] == category, notes.clicks[note]);
    };
    const std::span<const Pair> of_query = scores_of(scores, query);
    const float score = score_of(of_query, target);
    Rank rank = score == 0 ? ranks[i] : Rank{};
    for (const Pair& pair : of_query) {
      if (pair.target == target || pool.row_of[pair.target] < 0) continue;
      const bool more = popularity(pair.target) > popularity(target);
      const bool as_many = popularity(pair.target) == popularity(target);
      if (score == 0) {  // counted in ranks[i] by its popularity; but its score is more
        rank.better += !more;
        rank.ties -= as_many;
      } else {
        rank.better += pair.score > score || (pair.score == score && more);
        rank.ties += pair.score == score && as_many;
      }
    }
    ranks[i] = rank;
  }
  return ranks;
}

}  // namespace notellm

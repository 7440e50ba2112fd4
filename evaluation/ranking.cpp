#include "evaluation/ranking.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/gemm.h"
#include "runtime/memory.h"

namespace notellm {
namespace {

constexpr int64_t query_tile = 256, pool_tile = 1024;

void check(const Tensor& pool, std::span<const Question> questions, std::span<const float> prior) {
  NOTELLM_CHECK(pool.dtype == DType::f32 && pool.dims == 2, "pool is {}", describe(pool));
  for (const Question& q : questions)
    NOTELLM_CHECK(
        q.query >= 0 && q.query < pool.rows() && q.target >= 0 && q.target < pool.rows() && q.query != q.target,
        "query {}, target {} of a pool of {}", q.query, q.target, pool.rows());
  NOTELLM_CHECK(prior.empty() || static_cast<int64_t>(prior.size()) == pool.rows(), "prior of {}, pool of {}",
                prior.size(), pool.rows());
}

// Questions by their query: unique query u has questions order[first[u]] … order[first[u + 1] - 1].
struct Grouping {
  std::vector<int32_t> queries;
  std::vector<int64_t> order, first;

  explicit Grouping(std::span<const Question> questions) : order(questions.size()) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return questions[a].query < questions[b].query; });
    for (size_t i = 0; i < order.size(); ++i) {
      const int32_t query = questions[order[i]].query;
      if (!queries.empty() && queries.back() == query) continue;
      queries.push_back(query);
      first.push_back(static_cast<int64_t>(i));
    }
    first.push_back(static_cast<int64_t>(order.size()));
  }
};

// How many of the scores are higher than the target's, and how many equal to it.
Rank compare(const float* scores, int64_t size, float target) {
  int32_t better = 0, ties = 0;
#pragma omp simd reduction(+ : better, ties)
  for (int64_t x = 0; x < size; ++x) {
    better += !(scores[x] <= target);
    ties += scores[x] == target;
  }
  return {better, ties};
}

// Takes one score out of what compare() counted.
void leave_out(float score, float target, Rank& rank) {
  const Rank one = compare(&score, 1, target);
  rank.better -= one.better;
  rank.ties -= one.ties;
}

// One question of a block of queries.
struct Asked {
  int64_t index;    // among all questions
  int64_t row;      // of its query in the block
  float score = 0;  // of its target
};

class Search {
 public:
  Search(Stream& stream, Tensor pool, std::span<const Question> questions, std::span<const float> prior)
      : stream_(stream),
        pool_(pool),
        questions_(questions),
        prior_(prior),
        memory_((query_tile + pool_tile) * pool.cols() * 4 + query_tile * pool_tile * 4 + 3 * 64),
        queries_(memory_.allocate(DType::f32, {query_tile, pool.cols()})),
        columns_(memory_.allocate(DType::f32, {pool_tile, pool.cols()})),
        scores_(memory_.allocate(DType::f32, {query_tile, pool_tile})) {}

  // Ranks the targets of the unique queries begin … end - 1, at most query_tile of them.
  void rank_block(const Grouping& groups, int64_t begin, int64_t end, std::vector<Rank>& ranks) {
    asked_.clear();
    for (int64_t u = begin; u < end; ++u)
      for (int64_t i = groups.first[u]; i < groups.first[u + 1]; ++i) asked_.push_back({groups.order[i], u - begin});
    gather(std::span(groups.queries).subspan(begin, end - begin), queries_);
    score_targets();
    for (int64_t tile = 0; tile < pool_.rows(); tile += pool_tile) count_tile(tile, ranks);
  }

 private:
  const float* score_row(int64_t row) const { return scores_.as<float>() + row * pool_tile; }

  // Rows of the pool into a tile; the rest of the tile is zero, so that every product has the same shape.
  void gather(std::span<const int32_t> rows, const Tensor& tile) {
    const int64_t d = pool_.cols(), count = static_cast<int64_t>(rows.size());
    for (int64_t i = 0; i < count; ++i) std::copy_n(pool_.as<float>() + rows[i] * d, d, tile.as<float>() + i * d);
    std::fill(tile.as<float>() + count * d, tile.as<float>() + tile.size(), 0.0f);
  }

  void score(const Tensor& columns) { gemm(stream_, queries_, Transpose::no, columns, Transpose::yes, scores_); }

  // The targets' scores, as the same product that scores the pool gives them.
  void score_targets() {
    std::vector<int32_t> rows;
    for (size_t begin = 0; begin < asked_.size(); begin += pool_tile) {
      const std::span<Asked> part =
          std::span(asked_).subspan(begin, std::min<size_t>(pool_tile, asked_.size() - begin));
      rows.clear();
      for (const Asked& asked : part) rows.push_back(questions_[asked.index].target);
      gather(rows, columns_);
      score(columns_);
      for (size_t i = 0; i < part.size(); ++i)
        part[i].score = score_row(part[i].row)[i] + (prior_.empty() ? 0.0f : prior_[rows[i]]);
    }
  }

  void count_tile(int64_t begin, std::vector<Rank>& ranks) {
    const int64_t d = pool_.cols(), size = std::min(pool_tile, pool_.rows() - begin);
    if (size < pool_tile) {
      std::memset(columns_.data, 0, columns_.bytes());
      std::copy_n(pool_.as<float>() + begin * d, size * d, columns_.as<float>());
    }
    score(size == pool_tile ? pool_.slice(begin, begin + size) : columns_);
    if (!prior_.empty()) add_prior(begin, size);
    const int64_t count = static_cast<int64_t>(asked_.size());
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const Asked& asked = asked_[i];
      const float* scores = score_row(asked.row);
      Rank& rank = ranks[asked.index];
      const Rank found = compare(scores, size, asked.score);
      rank.better += found.better;
      rank.ties += found.ties;
      for (const int64_t own : {questions_[asked.index].query - begin, questions_[asked.index].target - begin})
        if (own >= 0 && own < size) leave_out(scores[own], asked.score, rank);
    }
  }

  void add_prior(int64_t begin, int64_t size) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < query_tile; ++row) {
      float* scores = scores_.as<float>() + row * pool_tile;
      for (int64_t x = 0; x < size; ++x) scores[x] += prior_[begin + x];
    }
  }

  Stream& stream_;
  Tensor pool_;
  std::span<const Question> questions_;
  std::span<const float> prior_;
  Arena memory_;
  Tensor queries_, columns_, scores_;
  std::vector<Asked> asked_;
};

}  // namespace

Pool make_pool(const NoteTable& notes) {
  Pool pool;
  pool.row_of.assign(notes.size(), -1);
  for (int64_t note = 0; note < notes.size(); ++note) {
    if (!notes.in_pool[note]) continue;
    pool.row_of[note] = static_cast<int32_t>(pool.notes.size());
    pool.notes.push_back(static_cast<int32_t>(note));
  }
  return pool;
}

std::vector<Question> make_questions(const Pool& pool, std::span<const Pair> pairs) {
  std::vector<Question> questions;
  questions.reserve(pairs.size());
  for (const Pair& pair : pairs) {
    for (const int32_t note : {pair.query, pair.target})
      if (note < 0 || note >= static_cast<int64_t>(pool.row_of.size()) || pool.row_of[note] < 0)
        fail(ErrorKind::data,
             "note {} of test pair {} is not in the pool: the shards do not belong together, prepare them "
             "again",
             note, questions.size());
    questions.push_back({pool.row_of[pair.query], pool.row_of[pair.target]});
  }
  return questions;
}

Rank rank_in_row(std::span<const float> scores, Question question) {
  const float target = scores[question.target];
  Rank rank = compare(scores.data(), static_cast<int64_t>(scores.size()), target);
  leave_out(scores[question.query], target, rank);
  leave_out(target, target, rank);
  return rank;
}

std::vector<Rank> rank_targets(Stream& stream, Communicator& ranks, Tensor pool, std::span<const Question> questions,
                               std::span<const float> prior) {
  check(pool, questions, prior);
  const Grouping groups(questions);
  const int64_t queries = static_cast<int64_t>(groups.queries.size());
  const int64_t begin = queries * ranks.rank() / ranks.size(), end = queries * (ranks.rank() + 1) / ranks.size();
  std::vector<Rank> result(questions.size());
  Search search(stream, pool, questions, prior);
  for (int64_t u = begin; u < end; u += query_tile) search.rank_block(groups, u, std::min(u + query_tile, end), result);

  // Each question was answered by one rank; the others hold zeros.
  static_assert(sizeof(Rank) == 2 * sizeof(int32_t));
  ranks.all_reduce_sum("ranks of targets", Tensor(result.data(), DType::i32, {static_cast<int64_t>(result.size()), 2}));
  return result;
}

RankingMetrics summarize(std::span<const Rank> ranks, std::span<const uint8_t> mask) {
  NOTELLM_CHECK(mask.empty() || mask.size() == ranks.size(), "mask of {} for {} ranks", mask.size(), ranks.size());
  int64_t last = 0;
  for (const Rank& rank : ranks) last = std::max<int64_t>(last, int64_t{rank.better} + rank.ties + 1);
  std::vector<double> harmonic(last + 1, 0.0);  // 1 + 1/2 + … + 1/n
  for (int64_t n = 1; n <= last; ++n) harmonic[n] = harmonic[n - 1] + 1.0 / static_cast<double>(n);

  RankingMetrics sum{};
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!mask.empty() && !mask[i]) continue;
    const int64_t better = ranks[i].better, places = int64_t{ranks[i].ties} + 1;
    ++sum.count;
    for (size_t c = 0; c < recall_cutoffs.size(); ++c)
      sum.recall[c] += static_cast<double>(std::clamp<int64_t>(recall_cutoffs[c] - better, 0, places)) / places;
    sum.mrr += (harmonic[better + places] - harmonic[better]) / static_cast<double>(places);
  }
  const double count = sum.count > 0 ? static_cast<double>(sum.count) : std::numeric_limits<double>::quiet_NaN();
  for (double& recall : sum.recall) recall /= count;
  sum.mrr /= count;
  return sum;
}

}  // namespace notellm

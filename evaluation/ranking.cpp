#include "evaluation/ranking.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/rank_count.h"
#include "runtime/transfer.h"

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

class Search {
 public:
  Search(Stream& stream, Tensor pool, std::span<const Question> questions, std::span<const float> prior)
      : stream_(stream),
        questions_(questions),
        prior_(prior),
        pool_memory_(stream.on_gpu() ? pool.bytes() : 0, memory_of(stream.device()), "vectors that are ranked"),
        prior_memory_(stream.on_gpu() ? std::ssize(prior) * 4 : 0, memory_of(stream.device()), "prior"),
        memory_((query_tile + pool_tile) * pool.cols() * 4 + query_tile * pool_tile * 4 + 3 * 64,
                memory_of(stream.device())),
        lists_(stream.device()),
        rows_(stream.device()),
        pool_(on_stream(pool, pool_memory_)),
        priors_(prior.empty() ? Tensor() : on_stream(Tensor::of(prior.data(), {std::ssize(prior)}), prior_memory_)),
        queries_(memory_.allocate(DType::f32, {query_tile, pool.cols()})),
        columns_(memory_.allocate(DType::f32, {pool_tile, pool.cols()})),
        scores_(memory_.allocate(DType::f32, {query_tile, pool_tile})) {}

  // Ranks the targets of the unique queries begin … end - 1, at most query_tile of them.
  void rank_block(const Grouping& groups, int64_t begin, int64_t end, std::vector<Rank>& ranks) {
    ask(groups, begin, end);
    gather(std::span(groups.queries).subspan(begin, end - begin), queries_);
    score_targets();
    for (int64_t tile = 0; tile < pool_.rows(); tile += pool_tile) count_tile(tile);
    counted_.resize(2 * asked_.size());
    copy(stream_, counts(), Tensor::of(counted_.data(), {std::ssize(asked_), 2}));
    lists_.done(stream_);
    stream_.synchronize();
    for (size_t i = 0; i < asked_.size(); ++i) ranks[asked_[i]] = {counted_[2 * i], counted_[2 * i + 1]};
  }

 private:
  // In memory of the stream's device.
  Tensor on_stream(Tensor host, const Buffer& memory) {
    if (!stream_.on_gpu()) return host;
    Tensor on = host;
    on.data = memory.data();
    copy(stream_, host, on);
    return on;
  }

  // The block's questions, and their lists for the ops.
  void ask(const Grouping& groups, int64_t begin, int64_t end) {
    asked_.clear();
    row_list_.clear();
    left_out_list_.clear();
    for (int64_t u = begin; u < end; ++u)
      for (int64_t i = groups.first[u]; i < groups.first[u + 1]; ++i) {
        const Question& question = questions_[groups.order[i]];
        asked_.push_back(groups.order[i]);
        row_list_.push_back(static_cast<int32_t>(u - begin));
        left_out_list_.insert(left_out_list_.end(), {question.query, question.target});
      }
    const auto n = std::ssize(asked_);
    lists_.send(
        {{Tensor::of(row_list_.data(), {n}), &row_of_}, {Tensor::of(left_out_list_.data(), {n, 2}), &left_out_}});
    lists_.wait(stream_);
    if (const int64_t bytes = n * 3 * 4; results_.bytes() < bytes)
      results_ = Buffer(bytes, memory_of(stream_.device()));
    set_zero(stream_, counts());
  }
  Tensor counts() const { return Tensor(results_.data(), DType::i32, {std::ssize(asked_), 2}); }
  Tensor targets() const {
    return Tensor(static_cast<char*>(results_.data()) + std::ssize(asked_) * 8, DType::f32, {std::ssize(asked_)});
  }

  // Rows of the pool into a tile; the rest of the tile is zero, so that every product has the same shape.
  void gather(std::span<const int32_t> rows, const Tensor& tile) {
    wanted_.assign(rows.begin(), rows.end());
    wanted_.resize(static_cast<size_t>(tile.rows()), -1);
    Tensor list;
    rows_.send({{Tensor::of(wanted_.data(), {tile.rows()}), &list}});
    rows_.wait(stream_);
    gather_rows(stream_, pool_, list, tile);
    rows_.done(stream_);
  }

  void score(const Tensor& columns) { gemm(stream_, queries_, Transpose::no, columns, Transpose::yes, scores_); }

  // The targets' scores, as the same product that scores the pool gives them.
  void score_targets() {
    const auto n = std::ssize(asked_);
    for (int64_t begin = 0; begin < n; begin += pool_tile) {
      const int64_t end = std::min(n, begin + pool_tile);
      target_list_.clear();
      for (int64_t i = begin; i < end; ++i) target_list_.push_back(left_out_list_[2 * i + 1]);
      gather(target_list_, columns_);
      score(columns_);
      Tensor prior;
      if (!prior_.empty()) {
        added_.clear();
        for (int32_t target : target_list_) added_.push_back(prior_[target]);
        rows_.send({{Tensor::of(added_.data(), {end - begin}), &prior}});
        rows_.wait(stream_);
      }
      pick_scores(stream_, scores_, prior, row_of_.slice(begin, end), targets().slice(begin, end));
      rows_.done(stream_);
    }
  }

  void count_tile(int64_t begin) {
    const int64_t size = std::min(pool_tile, pool_.rows() - begin);
    const Tensor part = pool_.slice(begin, begin + size);
    if (size < pool_tile) {
      set_zero(stream_, columns_);
      copy(stream_, part, columns_.slice(0, size));
    }
    score(size == pool_tile ? part : columns_);
    rank_count(stream_, scores_, size, priors_.empty() ? Tensor() : priors_.slice(begin, begin + size), begin, row_of_,
               targets(), left_out_, counts());
  }

  Stream& stream_;
  std::span<const Question> questions_;
  std::span<const float> prior_;
  Buffer pool_memory_, prior_memory_;  // CUDA only
  Arena memory_;
  Upload lists_, rows_;
  Tensor pool_, priors_;
  Tensor queries_, columns_, scores_;
  // Of a block: its questions, among all; their queries' rows in the block; query and target.
  std::vector<int64_t> asked_;
  std::vector<int32_t> row_list_, left_out_list_, target_list_, wanted_, counted_;
  std::vector<float> added_;
  Tensor row_of_, left_out_;
  Buffer results_;  // counts, targets' scores
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
  const int32_t row = 0, left_out[2] = {question.query, question.target};
  int32_t counts[2] = {};
  Stream stream;
  const int64_t columns = std::ssize(scores);
  rank_count(stream, Tensor::of(scores.data(), {1, columns}), columns, {}, 0, Tensor::of(&row, {1}),
             Tensor::of(&scores[question.target], {1}), Tensor::of(left_out, {1, 2}), Tensor::of(counts, {1, 2}));
  return {counts[0], counts[1]};
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

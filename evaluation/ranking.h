// Exact search over a pool of notes, and the metrics of the ranks that it gives.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "data_pipeline/note_table.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// The notes that are ranked: those of the note table with in_pool, in its order.
struct Pool {
  std::vector<int32_t> notes;   // [P] row of the note table
  std::vector<int32_t> row_of;  // [notes of the table] pool row; -1: not in the pool

  int64_t size() const { return static_cast<int64_t>(notes.size()); }
};
Pool make_pool(const NoteTable& notes);

// Where does `target` stand among the pool without `query`? Both are pool rows, not the same one.
struct Question {
  int32_t query, target;
};
// Throws Error(data) when a note of a pair is not in the pool.
std::vector<Question> make_questions(const Pool& pool, std::span<const Pair> pairs);

// Of the pool without query and target: how many score higher than the target, and how many exactly the same. Equal
// scores count as if they stood in random order: the target's rank is better + 1 … better + ties + 1, each as likely.
// A method that cannot tell notes apart then gets what guessing gets, neither the first nor the last of their places.
// NaN counts as higher, against anything: vectors that are broken rank last, not first.
struct Rank {
  int32_t better = 0, ties = 0;
};
// The rank of the question's target by the scores of the whole pool, [P].
Rank rank_in_row(std::span<const float> scores, Question question);

// score(query, x) = <pool[query], pool[x]> + prior[x]
//
//   pool   [P, d]  f32 in host memory, the same on all ranks; normalised rows give the cosine
//   prior  [P]     added to every query's scores, or empty
//
// The rank of each question's target, on all ranks of `ranks`, which share the work by queries: the result does not
// depend on their number. A query is scored once, whatever the number of its targets. Memory beyond arguments and
// result: a tile of scores and its vectors; on CUDA also a copy of pool and prior. All products have the same shape, so
// that equal vectors have equal scores wherever they stand (tests hold it). Throws Error: dtype, rows out of range, a
// target that is its query, a prior of another length.
std::vector<Rank> rank_targets(Stream& stream, Communicator& ranks, Tensor pool, std::span<const Question> questions,
                               std::span<const float> prior = {});

constexpr std::array<int64_t, 4> recall_cutoffs = {10, 100, 1000, 10000};

// Expected values over the random order of equal scores; NaN when count is 0.
struct RankingMetrics {
  std::array<double, recall_cutoffs.size()> recall;  // share of targets among the first k
  double mrr;                                        // mean of 1 / rank
  int64_t count;                                     // questions
};
// Over the questions whose mask is not 0; mask: [questions], or empty for all.
RankingMetrics summarize(std::span<const Rank> ranks, std::span<const uint8_t> mask = {});

}  // namespace notellm

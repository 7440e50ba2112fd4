#include "data_pipeline/cooccurrence.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

// Ranges a thread: more of them balance the threads better, and each costs a pass over the lists.
constexpr int64_t wanted_ranges = 4;
constexpr int64_t least_range_bytes = 1 << 16;
constexpr int64_t scan_bytes = 1 << 18;  // a thread's buffer for the lists

// A range of notes A is gathered as rows of int32 words, A by A in the order of users: {followers, N, the followers B
// …}.
int64_t row_words(int64_t followers) { return followers == 0 ? 0 : 2 + followers; }

// [notes + 1] words of the rows of all A before this one.
std::vector<int64_t> count_words(const ClickLists& lists, Split split) {
  std::vector<int64_t> words(lists.notes() + 1);
  ClickLists::Scanner scanner(lists, split, scan_bytes);
  for (UserList list; scanner.next(list);)
    for (int64_t i = 0; i < list.size(); ++i) words[list.notes[i] + 1] += row_words(list.followers(i));
  for (int64_t a = 0; a < lists.notes(); ++a) words[a + 1] += words[a];
  return words;
}

// A type, not a function, so that the heap's comparisons are inlined.
struct Better {
  bool operator()(const Pair& x, const Pair& y) const {
    return x.score != y.score ? x.score > y.score : x.target < y.target;
  }
};

// Notes A in [begin, end), gathered at once.
struct Range {
  int32_t begin, end;
  int64_t most_pairs;  // that they can give
  bool streamed;       // one note whose rows do not fit
};

// One thread's sums over B for one A at a time, and the selection of the best.
class Scorer {
 public:
  Scorer(const CooccurrenceConfig& config, int64_t notes)
      : config_(config),
        sums_memory_(notes * static_cast<int64_t>(sizeof(double))),
        touched_memory_((notes + 1) * static_cast<int64_t>(sizeof(int32_t))),
        sums_(static_cast<double*>(sums_memory_.data())),
        touched_(static_cast<int32_t*>(touched_memory_.data())) {}

  // A user of N = `notes` notes; `followers` of A, or some of them.
  void add(int64_t notes, const int32_t* followers, int64_t count) {
    const double weight = 1.0 / static_cast<double>(notes);
    int64_t touched = touched_count_;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t b = followers[i];
      touched_[touched] = b;
      touched += sums_[b] == 0;
      sums_[b] += weight;
    }
    touched_count_ = touched;
    stats.triples += count;
  }

  // Appends A's pairs; the sums are zero again.
  void finish(int32_t a, std::vector<Pair>& pairs) {
    const auto lower = static_cast<float>(config_.lower), upper = static_cast<float>(config_.upper);
    best_.clear();
    for (int64_t i = 0; i < touched_count_; ++i) {
      const Pair pair = {a, touched_[i], static_cast<float>(sums_[touched_[i]])};
      sums_[pair.target] = 0;
      if (pair.score < lower)
        ++stats.low;
      else if (pair.score > upper)
        ++stats.high;
      else
        offer(pair);
    }
    stats.scored += touched_count_;
    touched_count_ = 0;
    std::sort_heap(best_.begin(), best_.end(), Better{});
    stats.pairs += std::ssize(best_);
    pairs.insert(pairs.end(), best_.begin(), best_.end());
  }

  CooccurrenceStats stats;

 private:
  // best_ is a heap of the best so far, the worst of them in front.
  void offer(const Pair& pair) {
    if (std::ssize(best_) == config_.top) {
      ++stats.beyond;
      if (!Better{}(pair, best_.front())) return;
      std::pop_heap(best_.begin(), best_.end(), Better{});
      best_.back() = pair;
    } else {
      best_.push_back(pair);
    }
    std::push_heap(best_.begin(), best_.end(), Better{});
  }

  const CooccurrenceConfig& config_;
  Buffer sums_memory_, touched_memory_;
  double* sums_;      // [notes]
  int32_t* touched_;  // [notes + 1] first those with a sum; the place after them is written to before it counts
  int64_t touched_count_ = 0;
  std::vector<Pair> best_;
};

// One thread's workspace: gathers the rows of a range and scores its notes.
class RangeWorker {
 public:
  RangeWorker(const ClickLists& lists, Split split, const CooccurrenceConfig& config)
      : lists_(lists), split_(split), scorer_(config, lists.notes()) {}

  // The range's pairs, valid until the next call. `words`: count_words.
  const std::vector<Pair>& run(const Range& range, const std::vector<int64_t>& words) {
    pairs_.clear();
    pairs_.reserve(range.most_pairs);
    if (range.streamed)
      stream(range.begin);
    else
      gather(range.begin, range.end, words);
    return pairs_;
  }

  const CooccurrenceStats& stats() const { return scorer_.stats; }

 private:
  void gather(int32_t begin, int32_t end, const std::vector<int64_t>& words) {
    const int64_t needed = words[end] - words[begin];
    if (rows_memory_.bytes() < needed * 4) rows_memory_ = Buffer(needed * 4);
    auto* const rows = static_cast<int32_t*>(rows_memory_.data());
    cursors_.resize(end - begin);
    for (int32_t a = begin; a < end; ++a) cursors_[a - begin] = words[a] - words[begin];
    ClickLists::Scanner scanner(lists_, split_, scan_bytes);
    for (UserList list; scanner.next(list);) {
      for (int64_t i = 0; i < list.size(); ++i) {
        const uint32_t a = static_cast<uint32_t>(list.notes[i]) - static_cast<uint32_t>(begin);
        if (a >= cursors_.size()) continue;
        const int64_t followers = list.followers(i);
        if (followers == 0) continue;
        int32_t* row = rows + cursors_[a];
        cursors_[a] += row_words(followers);
        *row++ = static_cast<int32_t>(followers);
        *row++ = static_cast<int32_t>(list.size());
        for (int64_t j = list.tail(i); j < i; ++j) *row++ = list.notes[j];
        for (int64_t j = i + 1; j < list.size(); ++j) *row++ = list.notes[j];
      }
    }
    const int32_t* row = rows;
    for (int32_t a = begin; a < end; ++a) {
      for (const int32_t* const last = rows + cursors_[a - begin]; row < last; row += row_words(row[0]))
        scorer_.add(row[1], row + 2, row[0]);
      scorer_.finish(a, pairs_);
    }
  }

  // An A whose rows do not fit: summed as they are read.
  void stream(int32_t a) {
    ClickLists::Scanner scanner(lists_, split_, scan_bytes);
    for (UserList list; scanner.next(list);) {
      const auto found = std::find(list.notes.begin(), list.notes.end(), a);
      if (found == list.notes.end()) continue;
      const int64_t i = found - list.notes.begin(), tail = list.tail(i);
      if (tail < i) scorer_.add(list.size(), &list.notes[tail], i - tail);
      scorer_.add(list.size(), list.notes.data() + i + 1, list.size() - i - 1);
    }
    scorer_.finish(a, pairs_);
  }

  const ClickLists& lists_;
  Split split_;
  Scorer scorer_;
  Buffer rows_memory_;
  std::vector<int64_t> cursors_;  // [notes of the range] next word of each A
  std::vector<Pair> pairs_;
};

// What a range costs its thread: rows, cursors and pairs.
int64_t range_bytes(int64_t words, int64_t notes, int64_t most_pairs) {
  return words * 4 + notes * 8 + most_pairs * static_cast<int64_t>(sizeof(Pair));
}

// The bytes that one thread may spend on a range.
int64_t thread_bytes(int64_t notes, int top, int threads, int64_t memory_bytes) {
  // Per note: the counted words, and in each thread a sum and a place in the list of touched notes.
  const int64_t fixed = (notes + 1) * (8 + 12 * int64_t{threads}) + threads * scan_bytes;
  const int64_t least = threads * range_bytes(1024, 1, top);
  if (memory_bytes < fixed + least)
    fail(ErrorKind::usage, "co-occurrence of {} notes on {} threads needs at least {} MB, not {}; raise data.memory_mb",
         notes, threads, ((fixed + least) >> 20) + 1, memory_bytes >> 20);
  return (memory_bytes - fixed) / threads;
}

// Cuts [begin, end) into ranges that cost at most `aim`, or are one note; one that costs more than `most` is streamed.
std::vector<Range> cut_ranges(const std::vector<int64_t>& words, int top, int32_t begin, int32_t end, int64_t aim,
                              int64_t most) {
  std::vector<Range> ranges;
  const auto cost = [&](int32_t first, int32_t last, int64_t pairs) {
    return range_bytes(words[last] - words[first], last - first, pairs);
  };
  for (int32_t a = begin; a < end; ++a) {
    const int64_t pairs_of_a = std::min<int64_t>(top, words[a + 1] - words[a]);
    if (!ranges.empty() && cost(ranges.back().begin, a + 1, ranges.back().most_pairs + pairs_of_a) <= aim) {
      ranges.back().end = a + 1;
      ranges.back().most_pairs += pairs_of_a;
    } else {
      ranges.push_back({a, a + 1, pairs_of_a, cost(a, a + 1, pairs_of_a) > most});
    }
  }
  return ranges;
}

void add_stats(CooccurrenceStats& sum, const CooccurrenceStats& part) {
  sum.triples += part.triples;
  sum.scored += part.scored;
  sum.low += part.low;
  sum.high += part.high;
  sum.beyond += part.beyond;
  sum.pairs += part.pairs;
}
}  // namespace

void CooccurrenceConfig::fields(Fields& f) {
  f.add("lower", "pairs with a smaller score are dropped", lower, at_least(0));
  f.add("upper", "pairs with a larger score are dropped", upper, at_least(0));
  f.add("top", "pairs kept of each note", top, at_least(1));
}

CooccurrenceStats cooccurrence(Communicator& ranks, const ClickLists& lists, Split split,
                               const CooccurrenceConfig& config, int64_t memory_bytes, const PairSink& sink) {
  const Stopwatch watch;
  const int threads = omp_get_max_threads();
  const int64_t budget = thread_bytes(lists.notes(), config.top, threads, memory_bytes);
  const std::vector<int64_t> words = count_words(lists, split);
  // The first note of rank r: all before it have their share of the rows.
  const auto first_of = [&](int r) {
    const int64_t share = words.back() / ranks.size() * r + words.back() % ranks.size() * r / ranks.size();
    return r == ranks.size()
               ? static_cast<int32_t>(lists.notes())
               : static_cast<int32_t>(std::lower_bound(words.begin(), words.end(), share) - words.begin());
  };
  const int32_t begin = first_of(ranks.rank()), end = first_of(ranks.rank() + 1);
  const int64_t cost = range_bytes(words[end] - words[begin], end - begin, 0);
  const int64_t aim = std::max(cost / (wanted_ranges * threads), least_range_bytes);
  const std::vector<Range> parts = cut_ranges(words, config.top, begin, end, std::min(budget, aim), budget);
  const int64_t ranges = std::ssize(parts);

  CooccurrenceStats stats;
  std::exception_ptr error;  // the first in the order of ranges
  std::atomic<bool> stopped = false;
#pragma omp parallel num_threads(threads)
  {
    RangeWorker worker(lists, split, config);
#pragma omp for ordered schedule(dynamic, 1)
    for (int64_t range = 0; range < ranges; ++range) {
      if (stopped) continue;
      std::exception_ptr mine;
      const std::vector<Pair>* pairs = nullptr;
      try {
        pairs = &worker.run(parts[range], words);
      } catch (...) {
        mine = std::current_exception();
      }
#pragma omp ordered
      try {
        if (mine) std::rethrow_exception(mine);
        if (!stopped && !pairs->empty()) sink(*pairs);
      } catch (...) {
        if (!error) error = std::current_exception();
        stopped = true;
      }
    }
#pragma omp critical
    add_stats(stats, worker.stats());
  }
  if (error) std::rethrow_exception(error);
  stats.ranges = ranges;
  stats.seconds = watch.seconds();
  return stats;
}

}  // namespace notellm

// Co-occurrence scores, and the pairs of related notes that they give.
//
//   s(A→B) = Σ 1/N_i over the users i of one split that clicked B after A (some click of B after some click of A,
//            A ≠ B),
//            N_i = number of distinct notes of user i's kept list. A user counts once for a pair.
//
// Pairs with s < lower or s > upper are dropped; of each A's the `top` highest remain (equal scores: smaller row of B
// first). Sums are in f64 and rounded once to f32; every comparison is made on the rounded score. That way sums that
// are equal as fractions (1/3 + 1/6 and 1/2) are equal here too, and the order can be checked from the output alone;
// f32 sums would differ by up to users · 2^-24, enough to reorder popular notes.
//
// Each A is summed by one thread, in the order of users: the pairs are the same bits for any number of threads and
// ranks and any memory bound.
//
// Method: notes A are cut into ranges; for each range, the lists' tails after A are gathered, A by A, from one pass
// over the lists, then each A is summed into a dense array over B. Ranges are as large as memory_bytes allows.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "data_pipeline/clicks.h"
#include "data_pipeline/note_table.h"
#include "runtime/communicator.h"
#include "runtime/config.h"

namespace notellm {

struct CooccurrenceConfig {
  double lower = 0.01;
  double upper = 30;
  int top = 10;

  void fields(Fields& f);
};

struct CooccurrenceStats {
  int64_t triples = 0;  // (user, A, B) summed by this rank
  int64_t scored = 0;   // (A, B) with a score, on this rank
  int64_t low = 0;      // of those: below `lower`
  int64_t high = 0;     // above `upper`
  int64_t beyond = 0;   // not among the top
  int64_t pairs = 0;    // given to the sink
  int64_t ranges = 0;
  double seconds = 0;
};

// Called with pairs in order of A, then descending score, by one thread at a time (not always the same one).
using PairSink = std::function<void(std::span<const Pair>)>;

// This rank takes a contiguous range of A (equal numbers of triples); all ranks' outputs, one rank after the other, are
// the whole. `lists` is the same on all ranks. memory_bytes bounds this rank's memory beyond `lists`. Error(usage):
// memory_bytes below what one entry a note and thread needs. Error(io): scratch file cannot be read.
CooccurrenceStats cooccurrence(Communicator& ranks, const ClickLists& lists, Split split,
                               const CooccurrenceConfig& config, int64_t memory_bytes, const PairSink& sink);

}  // namespace notellm

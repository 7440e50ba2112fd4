// The order of data: step s, slot i → pair, task and hashtags are pure functions of (seed, s, i), whatever the number
// of ranks and whatever was read before.
#pragma once

#include <cstdint>
#include <vector>

#include "data_pipeline/batch.h"
#include "data_pipeline/note_table.h"
#include "runtime/random.h"

namespace notellm {

struct SamplerConfig {
  uint64_t seed = 1;
  double hashtag_share = 0.4;  // r: share of the notes with hashtags that get the hashtag task
  bool random_topics = true;   // j uniform in 1 .. number of hashtags (at most what the prompts allow); else j = 1
  Until until = Until::output;
};

class Sampler {
 public:
  // Throws Error(data) when there are fewer training pairs than pairs_per_step.
  Sampler(const NoteTable& notes, const PairTable& pairs, int64_t pairs_per_step, SamplerConfig config);

  // The two notes of slot i of step s: 0 ≤ slot < pairs_per_step. Pair number s·pairs_per_step + slot of the endless
  // sequence of epochs; each epoch is a permutation of all training pairs of its own. A note without category or
  // hashtags gets the other task; with neither, its sequence ends at the note. Hashtags are a uniformly drawn subset of
  // j of the note's, in the note's order.
  struct Slot {
    NoteExample query, target;
  };
  Slot slot(int64_t step, int64_t slot) const;

  int64_t pairs_per_step() const { return pairs_per_step_; }
  int64_t pairs_per_epoch() const;

  // log of the probability that a uniformly drawn place (query or target) of a uniformly drawn training pair holds this
  // note; -infinity for a note of no training pair.
  float log_sampling_probability(int64_t note) const { return log_probability_[note]; }

 private:
  const NoteTable& notes_;
  const PairTable& pairs_;
  int64_t pairs_per_step_;
  SamplerConfig config_;
  std::vector<float> log_probability_;
};

// Which slots of a step go to which rank and micro-batch: balanced by token count, a pure function of its arguments.
// tokens[i]: tokens of slot i. Result [ranks][micro_batches] lists of slots; every list has at most ceil(slots / (ranks
// · micro_batches)) slots and, when that many slots exist, none is empty.
std::vector<std::vector<std::vector<int32_t>>> balance(const std::vector<int64_t>& tokens, int ranks,
                                                       int micro_batches);

}  // namespace notellm

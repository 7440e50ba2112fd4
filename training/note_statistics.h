// How long the notes of a run are: what a plan needs to know of its data.
#pragma once

#include "data_pipeline/note_table.h"
#include "training/config.h"
#include "training/flops.h"
#include "training/step_costs.h"

namespace notellm {

struct NoteStatistics {
  int64_t vocabulary = 0;  // rows of the embedding
  Longest longest;
  // Of the notes of some pairs, as a step draws them, packed into one batch: without shared beginnings, and with them.
  BatchCounts unshared, shared;
  int64_t prefixes = 0, prefix_tokens = 0;  // shared beginnings, and their tokens
  double prefix_keys = 0;                   // that their tokens see

  // Of a batch of so many notes with the same means.
  BatchCounts expected(int64_t notes) const;
};

// Throws Error(data): no pairs; a note longer than model.context.
NoteStatistics note_statistics(const RunConfig& config, const NoteTable& notes, const PairTable& pairs);

}  // namespace notellm

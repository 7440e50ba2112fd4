// Recall of an encoder over the whole pool: what `evaluate` and the in-training evaluation share.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "evaluation/embedder.h"
#include "evaluation/ranking.h"

namespace notellm {

// Every k-th of the pairs, so that at most `most` are left: the same sample at every call.
std::vector<Pair> sample_pairs(std::span<const Pair> pairs, int64_t most);

// The pool's note vectors, f32 [pool, note_dim]. All ranks call it and get the same. `show`: progress.
Buffer embed_pool(Stream& stream, Communicator& ranks, Embedder& embedder, const Weights& weights,
                  const NoteTable& notes, const Pool& pool, bool show, const PassHooks& hooks = {});
Tensor pool_vectors(const Buffer& memory, const Weights& weights, const Pool& pool);

// "recall_10", "recall_100", …, "mrr" with their values.
std::vector<std::pair<std::string, double>> named_values(const RankingMetrics& metrics);

}  // namespace notellm

#include "evaluation/recall.h"

namespace notellm {

std::vector<Pair> sample_pairs(std::span<const Pair> pairs, int64_t most) {
  const auto all = static_cast<int64_t>(pairs.size()), count = std::min(all, most);
  std::vector<Pair> sample;
  for (int64_t i = 0; i < count; ++i) sample.push_back(pairs[i * all / count]);
  return sample;
}

Tensor pool_vectors(const Buffer& memory, const Weights& weights, const Pool& pool) {
  return memory.tensor(DType::f32, {pool.size(), weights.note_projection.rows()});
}

Buffer embed_pool(Stream& stream, Communicator& ranks, Embedder& embedder, const Weights& weights,
                  const NoteTable& notes, const Pool& pool, bool show, const PassHooks& hooks) {
  Buffer memory(pool.size() * weights.note_projection.rows() * size_of(DType::f32));
  embedder.embed(stream, ranks, weights, notes, pool.notes, pool_vectors(memory, weights, pool), show, hooks);
  return memory;
}

std::vector<std::pair<std::string, double>> named_values(const RankingMetrics& metrics) {
  std::vector<std::pair<std::string, double>> values;
  for (size_t i = 0; i < recall_cutoffs.size(); ++i)
    values.emplace_back(fmt::format("recall_{}", recall_cutoffs[i]), metrics.recall[i]);
  values.emplace_back("mrr", metrics.mrr);
  return values;
}

}  // namespace notellm

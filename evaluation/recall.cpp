#include "evaluation/recall.h"

namespace notellm {

std::vector<Pair> sample_pairs(std::span<const Pair> pairs, int64_t most) {
  const auto all = static_cast<int64_t>(pairs.size()), count = std::min(all, most);
  std::vector<Pair> sample;
  for (int64_t i = 0; i < count; ++i) sample.push_back(pairs[i * all / count]);
  return sample;
}

std::vector<Rank> encoder_ranks(Stream& stream, Communicator& ranks, Embedder& embedder, const Weights& weights,
                                const NoteTable& notes, const Pool& pool, std::span<const Question> questions,
                                std::span<const float> prior, bool show) {
  const int64_t d = weights.note_projection.rows();
  const Buffer memory(pool.size() * d * 4);
  const Tensor vectors = memory.tensor(DType::f32, {pool.size(), d});
  embedder.embed(stream, ranks, weights, notes, pool.notes, vectors, show);
  return rank_targets(stream, ranks, vectors, questions, prior);
}

std::vector<std::pair<std::string, double>> named_values(const RankingMetrics& metrics) {
  std::vector<std::pair<std::string, double>> values;
  for (size_t i = 0; i < recall_cutoffs.size(); ++i)
    values.emplace_back(fmt::format("recall_{}", recall_cutoffs[i]), metrics.recall[i]);
  values.emplace_back("mrr", metrics.mrr);
  return values;
}

}  // namespace notellm

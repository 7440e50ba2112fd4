#include "training/sharding.h"

#include <algorithm>

namespace notellm {

int64_t held_elements(const ParameterLayout& layout, int held) {
  if (held == all_layers) return layout.size();
  const auto& buckets = layout.buckets();
  return buckets.front().size() + held * buckets[1].size() + buckets.back().size();
}

std::vector<Tensor> held_buckets(const ParameterLayout& layout, int held, Tensor memory) {
  std::vector<Tensor> parts;
  const auto& buckets = layout.buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    int64_t begin = buckets[i].begin;
    if (held != all_layers && i > 0) {
      const bool rest = i + 1 == buckets.size();
      begin = buckets[0].size() + buckets[1].size() * (rest ? held : static_cast<int64_t>(i - 1) % held);
    }
    parts.push_back(memory.slice(begin, begin + buckets[i].size()));
  }
  return parts;
}

ShardMap::ShardMap(const ParameterLayout& layout, Sharding sharding, int data_rank, int data_ranks)
    : sharding_(sharding), data_rank_(data_rank), data_ranks_(data_ranks) {
  if (sharding == Sharding::none) {
    pieces_.push_back({{0, layout.size()}, 0});
    size_ = layout.size();
    return;
  }
  for (const FlatRange& bucket : layout.buckets()) {
    NOTELLM_CHECK(bucket.size() % data_ranks == 0, "a bucket of {} elements for {} shards", bucket.size(), data_ranks);
    const int64_t share = bucket.size() / data_ranks, begin = bucket.begin + share * data_rank;
    pieces_.push_back({{begin, begin + share}, size_});
    size_ += share;
  }
}

Tensor ShardMap::own_place(const ParameterLayout& layout, size_t bucket, Tensor whole) const {
  const FlatRange piece = pieces_[bucket].flat;
  const int64_t begin = layout.buckets()[bucket].begin;
  return whole.slice(piece.begin - begin, piece.end - begin);
}

void ShardMap::for_runs(const ParameterLayout& layout, const TakeRun& take) const {
  for (const Parameter& p : layout.all()) for_runs(p, take);
}

void ShardMap::for_own_runs(const ParameterLayout& layout, const TakeRun& take) const {
  for_runs(layout, [&](const Run& run) {
    const int in_tensor_group = run.parameter.copies, in_data_group = sharded() ? 1 : data_ranks_;
    const int copies = in_tensor_group * in_data_group;
    const int index = (sharded() ? 0 : data_rank_) * in_tensor_group + layout.part().index % in_tensor_group;
    const int64_t begin = run.count * index / copies, end = run.count * (index + 1) / copies;
    if (begin < end) take({run.parameter, run.first + begin, end - begin, run.at + begin});
  });
}

void ShardMap::for_runs(const Parameter& p, const TakeRun& take) const {
  for (const Piece& piece : pieces_) {
    const int64_t begin = std::max(p.offset, piece.flat.begin), end = std::min(p.offset + p.size(), piece.flat.end);
    if (begin < end) take({p, begin - p.offset, end - begin, piece.at + begin - piece.flat.begin});
  }
}

}  // namespace notellm

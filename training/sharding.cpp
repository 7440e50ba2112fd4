#include "training/sharding.h"

#include <algorithm>

namespace notellm {

ShardMap::ShardMap(const ParameterLayout& layout, Sharding sharding, int data_rank, int data_ranks)
    : sharding_(sharding) {
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

void ShardMap::for_runs(const ParameterLayout& layout, const TakeRun& take) const {
  for (const Parameter& p : layout.all()) for_runs(p, take);
}

void ShardMap::for_runs(const Parameter& p, const TakeRun& take) const {
  for (const Piece& piece : pieces_) {
    const int64_t begin = std::max(p.offset, piece.flat.begin), end = std::min(p.offset + p.size(), piece.flat.end);
    if (begin < end) take({p, begin - p.offset, end - begin, piece.at + begin - piece.flat.begin});
  }
}

}  // namespace notellm

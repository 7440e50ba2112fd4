#include "kernels/attention_plan.h"

#include <algorithm>

namespace notellm {

using namespace attention_detail;

void AttentionPlan::set(std::span<const AttentionSegment> segments, std::span<const int32_t> query_tokens,
                        int64_t tokens) {
  segments_.assign(segments.begin(), segments.end());
  query_tokens_.assign(query_tokens.begin(), query_tokens.end());
  tokens_ = tokens;
  tables_.clear();
  device_tables_ = {};
  check();
  plan_cpu();
}

void AttentionPlan::check() {
  cpu_.token_covered.assign(static_cast<size_t>(tokens_), false);
  cpu_.query_covered.assign(query_tokens_.size(), false);
  for (size_t i = 0; i < segments_.size(); ++i) {
    const AttentionSegment& s = segments_[i];
    NOTELLM_CHECK(0 <= s.begin && s.begin <= s.end && s.end <= tokens_, "segment {} is {}..{} of {} tokens", i, s.begin,
                  s.end, tokens_);
    NOTELLM_CHECK(0 <= s.prefix_begin && s.prefix_begin <= s.prefix_end && s.prefix_end <= tokens_,
                  "the prefix of segment {} is {}..{} of {} tokens", i, s.prefix_begin, s.prefix_end, tokens_);
    NOTELLM_CHECK(0 <= s.query_begin && s.query_begin <= s.query_end && s.query_end <= queries(),
                  "segment {} has queries {}..{} of {}", i, s.query_begin, s.query_end, queries());
    for (int64_t token = s.begin; token < s.end; ++token) {
      NOTELLM_CHECK(!cpu_.token_covered[token], "token {} belongs to segment {} and to one before it", token, i);
      cpu_.token_covered[token] = true;
    }
    int64_t previous = int64_t{s.begin} - 1;
    for (int64_t query = s.query_begin; query < s.query_end; ++query) {
      NOTELLM_CHECK(!cpu_.query_covered[query], "query {} belongs to segment {} and to one before it", query, i);
      cpu_.query_covered[query] = true;
      NOTELLM_CHECK(previous < query_tokens_[query] && query_tokens_[query] < s.end,
                    "query {} of segment {} is token {}; it must lie in {}..{} and after the query before it", query, i,
                    query_tokens_[query], s.begin, s.end);
      previous = query_tokens_[query];
    }
  }
}

void AttentionPlan::plan_cpu() {
  // Runs of segments with at least so many own tokens together: some 10 µs of work a head.
  constexpr int64_t chunk_tokens = 512;
  cpu_.chunks.clear();
  int64_t tokens = chunk_tokens;
  for (size_t i = 0; i < segments_.size(); ++i) {
    if (tokens >= chunk_tokens) {
      cpu_.chunks.push_back({static_cast<int64_t>(i), 0});
      tokens = 0;
    }
    tokens += own_count(segments_[i]);
    cpu_.chunks.back().end = static_cast<int64_t>(i) + 1;
  }

  cpu_.runs.clear();
  cpu_.run_of.assign(segments_.size(), -1);
  cpu_.row_of.assign(static_cast<size_t>(tokens_), -1);
  cpu_.rows = 0;
  const auto takes_part = [](const AttentionSegment& s) { return prefix_count(s) > 0 && query_count(s) > 0; };
  for (const AttentionSegment& s : segments_)
    if (takes_part(s))
      for (int64_t token = s.prefix_begin; token < s.prefix_end; ++token)
        if (cpu_.row_of[token] < 0) cpu_.row_of[token] = static_cast<int32_t>(cpu_.rows++);
  for (const Range& chunk : cpu_.chunks) {
    const size_t first_run = cpu_.runs.size();
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      const AttentionSegment& s = segments_[i];
      if (!takes_part(s)) continue;
      if (cpu_.runs.size() == first_run || cpu_.runs.back().prefix_begin != s.prefix_begin ||
          cpu_.runs.back().prefix_end != s.prefix_end) {
        cpu_.runs.push_back({s.prefix_begin, s.prefix_end, cpu_.rows, i});
        cpu_.rows += prefix_count(s);
      }
      cpu_.run_of[i] = static_cast<int32_t>(cpu_.runs.size()) - 1;
    }
  }
}

// Fills the tables. Longer work comes first: the last blocks to end are then short ones.
struct AttentionPlan::TableBuilder {
  const AttentionPlan& plan;
  std::vector<int32_t> lists;
  std::vector<QueryTile> query_tiles;
  std::vector<KeyItem> key_items;
  std::vector<KeySum> key_sums;
  int64_t rows = 0;

  explicit TableBuilder(const AttentionPlan& plan) : plan(plan) {
    add_query_tiles();
    add_key_tiles();
    std::stable_sort(query_tiles.begin(), query_tiles.end(),
                     [&](const QueryTile& a, const QueryTile& b) { return keys_of(a) > keys_of(b); });
    std::stable_sort(key_items.begin(), key_items.end(), [](const KeyItem& a, const KeyItem& b) {
      return a.list_end - a.list_begin > b.list_end - b.list_begin;
    });
  }

  int32_t keys_of(const QueryTile& t) const {
    return t.in_segment ? t.prefix_count + plan.query_tokens_[t.query_end - 1] - t.own_begin + 1 : 0;
  }

  void add_query_tiles(int32_t begin, int32_t end, QueryTile tile) {
    for (; begin < end; begin += tile_size) {
      tile.query_begin = begin;
      tile.query_end = std::min(begin + tile_size, end);
      query_tiles.push_back(tile);
    }
  }
  void add_query_tiles() {
    for (const AttentionSegment& s : plan.segments_)
      add_query_tiles(s.query_begin, s.query_end,
                      {0, 0, s.prefix_begin, s.prefix_end - s.prefix_begin, s.begin, 1, {}});
    const std::vector<bool>& covered = plan.cpu_.query_covered;
    for (auto begin = covered.begin(); begin != covered.end();) {
      begin = std::find(begin, covered.end(), false);
      const auto end = std::find(begin, covered.end(), true);
      add_query_tiles(static_cast<int32_t>(begin - covered.begin()), static_cast<int32_t>(end - covered.begin()), {});
      begin = end;
    }
  }

  // Between two neighbours of these tokens all keys are seen by the same segments.
  std::vector<int32_t> boundaries() const {
    std::vector<int32_t> at = {0, static_cast<int32_t>(plan.tokens_)};
    for (const AttentionSegment& s : plan.segments_) {
      at.insert(at.end(), {s.begin, s.end});
      if (query_count(s) > 0 && prefix_count(s) > 0) at.insert(at.end(), {s.prefix_begin, s.prefix_end});
    }
    std::sort(at.begin(), at.end());
    at.erase(std::unique(at.begin(), at.end()), at.end());
    return at;
  }

  // The segments of one prefix, in order.
  struct Users {
    int32_t prefix_begin, prefix_end;
    std::vector<int32_t> segments;
  };
  std::vector<Users> users_of_prefixes() const {
    std::vector<int32_t> with_prefix;
    for (size_t i = 0; i < plan.segments_.size(); ++i)
      if (query_count(plan.segments_[i]) > 0 && prefix_count(plan.segments_[i]) > 0)
        with_prefix.push_back(static_cast<int32_t>(i));
    const auto prefix = [&](int32_t i) {
      return std::pair(plan.segments_[i].prefix_begin, plan.segments_[i].prefix_end);
    };
    std::stable_sort(with_prefix.begin(), with_prefix.end(),
                     [&](int32_t a, int32_t b) { return prefix(a) < prefix(b); });
    std::vector<Users> all;
    for (int32_t i : with_prefix) {
      if (all.empty() || std::pair(all.back().prefix_begin, all.back().prefix_end) != prefix(i))
        all.push_back({prefix(i).first, prefix(i).second, {}});
      all.back().segments.push_back(i);
    }
    return all;
  }

  void add_key_tiles() {
    const std::vector<Users> all_users = users_of_prefixes();
    const std::vector<int32_t> at = boundaries();
    std::vector<const AttentionSegment*> segment_from(static_cast<size_t>(plan.tokens_), nullptr);
    for (const AttentionSegment& s : plan.segments_)
      std::fill(segment_from.begin() + s.begin, segment_from.begin() + s.end, &s);
    for (size_t i = 0; i + 1 < at.size(); ++i) {
      const int32_t list_begin = static_cast<int32_t>(lists.size());
      const AttentionSegment* own = segment_from[at[i]];
      if (own)
        for (int32_t query = own->query_begin; query < own->query_end; ++query) lists.push_back(query);
      const int32_t own_end = static_cast<int32_t>(lists.size());
      for (const Users& users : all_users)
        if (users.prefix_begin <= at[i] && at[i + 1] <= users.prefix_end)
          for (int32_t segment : users.segments)
            for (int32_t q = plan.segments_[segment].query_begin; q < plan.segments_[segment].query_end; ++q)
              lists.push_back(q);
      for (int32_t key = at[i]; key < at[i + 1]; key += tile_size)
        add_key_items(key, std::min(key + tile_size, at[i + 1]), at[i + 1] - at[i], list_begin, own_end);
    }
  }

  // Own queries stay together. The others are shared out, so that a prefix of many segments is no block's long task,
  // but in such portions that the partial sums need at most tokens / 2 rows for prefixes that do not overlap.
  void add_key_items(int32_t key_begin, int32_t key_end, int32_t interval, int32_t list_begin, int32_t own_end) {
    const auto first_seeing = [&](int32_t token) {
      return static_cast<int32_t>(
          std::partition_point(lists.begin() + list_begin, lists.begin() + own_end,
                               [&](int32_t query) { return plan.query_tokens_[query] < token; }) -
          lists.begin());
    };
    const int32_t begin = first_seeing(key_begin), unmasked = first_seeing(key_end - 1),
                  end = static_cast<int32_t>(lists.size());
    constexpr int32_t least = 512, most_items = 64;
    const int32_t portion = std::max({least, 4 * interval, (end - begin) / most_items});
    int32_t item_end = std::min(end, std::max(own_end, begin + portion));
    const int32_t items = 1 + (end - item_end + portion - 1) / portion, keys = key_end - key_begin;
    if (items > 1) key_sums.push_back({key_begin, key_end, static_cast<int32_t>(rows), items});
    int32_t item_begin = begin;
    for (int32_t i = 0; i < items; ++i) {
      const int32_t masked = std::max(0, unmasked - item_begin);
      const int32_t row = items > 1 ? static_cast<int32_t>(rows + i * keys) : -1;
      key_items.push_back({key_begin, key_end, item_begin, item_end, masked, row, {}});
      item_begin = item_end;
      item_end = std::min(end, item_begin + portion);
    }
    if (items > 1) rows += int64_t{items} * keys;
  }
};

Tensor AttentionPlan::tables() {
  if (tables_.empty()) {
    const TableBuilder built(*this);
    const auto add = [&](const void* data, size_t count, size_t bytes) {
      constexpr size_t per_16_bytes = 4;
      const size_t at = (tables_.size() + per_16_bytes - 1) / per_16_bytes * per_16_bytes;
      tables_.resize(at);
      const int32_t* from = static_cast<const int32_t*>(data);
      tables_.insert(tables_.end(), from, from + count * bytes / sizeof(int32_t));
      return static_cast<int64_t>(at);
    };
    const auto add_table = [&](const auto& table) { return add(table.data(), table.size(), sizeof table[0]); };
    add_table(query_tokens_);
    gpu_.lists = add_table(built.lists);
    gpu_.query_tiles = add_table(built.query_tiles);
    gpu_.key_items = add_table(built.key_items);
    gpu_.key_sums = add_table(built.key_sums);
    gpu_.query_tile_count = static_cast<int32_t>(built.query_tiles.size());
    gpu_.key_item_count = static_cast<int32_t>(built.key_items.size());
    gpu_.key_sum_count = static_cast<int32_t>(built.key_sums.size());
    gpu_.rows = built.rows;
    tables_.resize(std::max<size_t>(tables_.size(), 4));  // a batch without tokens has tables too
  }
  return Tensor::of(tables_.data(), {static_cast<int64_t>(tables_.size())});
}

void AttentionPlan::set_device_tables(Tensor tables) {
  NOTELLM_CHECK(!tables_.empty() && tables.dtype == DType::i32 && tables.size() == static_cast<int64_t>(tables_.size()),
                "device tables are {}, but i32 [{}] is needed", describe(tables), tables_.size());
  device_tables_ = tables;
}

const GpuPlan& AttentionPlan::gpu() const {
  NOTELLM_CHECK(!tables_.empty(), "attention on CUDA before AttentionPlan::tables()");
  return gpu_;
}

const int32_t* AttentionPlan::device_tables() const {
  NOTELLM_CHECK(!device_tables_.empty(), "attention on CUDA before AttentionPlan::set_device_tables()");
  return device_tables_.as<int32_t>();
}

}  // namespace notellm

#include "losses/contrastive_mask.h"

#include <algorithm>
#include <limits>

namespace notellm {
namespace {
constexpr size_t most = std::numeric_limits<int32_t>::max();
}

void ContrastiveMask::build(std::span<const int64_t> ids, int64_t first, int64_t last, bool mask_known) {
  NOTELLM_CHECK(ids.size() % 2 == 0 && ids.size() <= most, "{} notes are no pairs", ids.size());
  NOTELLM_CHECK(0 <= first && first <= last && last <= static_cast<int64_t>(ids.size()), "rows {}..{} of {} notes",
                first, last, ids.size());
  begin_.assign(1, 0);
  columns_.clear();
  if (mask_known) group_columns(ids);
  for (int64_t row = first; row < last; ++row) {
    if (mask_known)
      append_known(static_cast<int32_t>(row));
    else
      columns_.push_back(static_cast<int32_t>(row));
    NOTELLM_CHECK(columns_.size() <= most, "{} masked columns up to row {}", columns_.size(), row);
    begin_.push_back(static_cast<int32_t>(columns_.size()));
  }
}

void ContrastiveMask::group_columns(std::span<const int64_t> ids) {
  const int32_t count = static_cast<int32_t>(ids.size());
  sorted_.clear();
  for (int32_t j = 0; j < count; ++j) sorted_.push_back({ids[j], j});
  std::sort(sorted_.begin(), sorted_.end());
  group_begin_.clear();
  group_of_.resize(count);
  for (int32_t k = 0; k < count; ++k) {
    if (k == 0 || sorted_[k].id != sorted_[k - 1].id) group_begin_.push_back(k);
    group_of_[sorted_[k].index] = static_cast<int32_t>(group_begin_.size()) - 1;
  }
  group_begin_.push_back(count);

  partners_.clear();
  for (int32_t j = 0; j < count; ++j) partners_.emplace_back(group_of_[j], group_of_[j ^ 1]);
  std::sort(partners_.begin(), partners_.end());
  partners_.erase(std::unique(partners_.begin(), partners_.end()), partners_.end());
}

void ContrastiveMask::append_known(int32_t row) {
  const int32_t own = group_of_[row], positive = row ^ 1;
  const auto start = static_cast<std::ptrdiff_t>(columns_.size());
  auto append = [&](int32_t group) {
    for (int32_t k = group_begin_[group]; k < group_begin_[group + 1]; ++k)
      if (sorted_[k].index != positive) columns_.push_back(sorted_[k].index);
  };
  append(own);
  for (auto at = std::lower_bound(partners_.begin(), partners_.end(), std::pair{own, int32_t{0}});
       at != partners_.end() && at->first == own; ++at)
    if (at->second != own) append(at->second);
  std::sort(columns_.begin() + start, columns_.end());
}

}  // namespace notellm

#include "model/model_input.h"

#include <algorithm>
#include <numeric>

namespace notellm {
namespace {

// Where each of `wanted` stands in the ascending `rows`.
void places(const std::vector<int32_t>& wanted, const std::vector<int32_t>& rows, std::vector<int32_t>& result) {
  result.clear();
  for (int32_t row : wanted)
    result.push_back(static_cast<int32_t>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin()));
}

}  // namespace

void ModelInput::set(const PackedBatch& batch, bool with_labels) {
  const auto n = static_cast<int64_t>(batch.tokens.size());
  tokens_ = view(batch.tokens);
  positions_ = view(batch.positions);
  rows_of_tokens_.set(batch.tokens);
  all_tokens_.resize(n);
  std::iota(all_tokens_.begin(), all_tokens_.end(), 0);

  rows_ = batch.note_rows;
  if (with_labels) rows_.insert(rows_.end(), batch.label_rows.begin(), batch.label_rows.end());
  std::sort(rows_.begin(), rows_.end());
  rows_.erase(std::unique(rows_.begin(), rows_.end()), rows_.end());
  row_positions_.clear();
  for (int32_t row : rows_) row_positions_.push_back(batch.positions[row]);
  places(batch.note_rows, rows_, note_places_);
  label_places_.clear();
  if (with_labels) places(batch.label_rows, rows_, label_places_);

  segments_.clear();
  last_segments_.clear();
  for (const Segment& s : batch.segments) {
    const Segment prefix = s.prefix < 0 ? Segment{0, 0, -1} : batch.segments[s.prefix];
    const auto place = [&](int32_t row) {
      return static_cast<int32_t>(std::lower_bound(rows_.begin(), rows_.end(), row) - rows_.begin());
    };
    segments_.push_back({s.begin, s.end, prefix.begin, prefix.end, s.begin, s.end});
    last_segments_.push_back({s.begin, s.end, prefix.begin, prefix.end, place(s.begin), place(s.end)});
  }
}

}  // namespace notellm

#include "model/model_input.h"

#include <algorithm>
#include <numeric>

namespace notellm {
namespace {

// Where each of `wanted` stands in the ascending `rows`.
void places(std::span<const int32_t> wanted, const std::vector<int32_t>& rows, std::vector<int32_t>& result) {
  result.clear();
  for (int32_t row : wanted)
    result.push_back(static_cast<int32_t>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin()));
}

// Tokens as rows of a part of the vocabulary; −1: of another part.
void rows_of_part(const std::vector<int32_t>& tokens, int64_t vocabulary, TensorPart part,
                  std::vector<int32_t>& result) {
  const auto rows = static_cast<int32_t>(vocabulary / part.count), first = rows * part.index;
  result.clear();
  for (int32_t token : tokens) result.push_back(first <= token && token < first + rows ? token - first : -1);
}

Tensor view(const std::vector<int32_t>& v) { return Tensor::of(v.data(), {static_cast<int64_t>(v.size())}); }

}  // namespace

void ModelInput::set(const PackedBatch& batch, int64_t vocabulary, bool with_labels) {
  Lists& l = lists_;
  const TensorPart part = share_.part();
  l.all_tokens.resize(batch.tokens.size());
  std::iota(l.all_tokens.begin(), l.all_tokens.end(), 0);
  l.rows = batch.note_rows;
  if (with_labels) l.rows.insert(l.rows.end(), batch.label_rows.begin(), batch.label_rows.end());
  std::sort(l.rows.begin(), l.rows.end());
  l.rows.erase(std::unique(l.rows.begin(), l.rows.end()), l.rows.end());
  l.row_positions.clear();
  for (int32_t row : l.rows) l.row_positions.push_back(batch.positions[row]);
  l.own_rows.clear();
  for (int32_t row : l.rows) l.own_rows.push_back(static_cast<int32_t>(share_.place_of(row, std::ssize(batch.tokens))));
  rows_grouped_.set(l.own_rows);
  places(batch.note_rows, l.rows, l.note_places);
  l.label_places.clear();
  if (with_labels) places(batch.label_rows, l.rows, l.label_places);
  rows_of_part(batch.tokens, vocabulary, part, l.tokens);
  rows_of_part(batch.labels, vocabulary, part, l.labels);
  tokens_grouped_.set(l.tokens);
  set_plan(batch, l.all_tokens, plan_);
  if constexpr (cuda_built)
    if (cudnn_) sequences_.set(plan_.segments(), static_cast<int64_t>(batch.tokens.size()), *cudnn_);
  set_plan(batch, l.rows, last_plan_);
  upload(batch);
}

void ModelInput::set_plan(const PackedBatch& batch, const std::vector<int32_t>& query_tokens, AttentionPlan& plan) {
  const auto place = [&](int32_t token) {
    return static_cast<int32_t>(std::lower_bound(query_tokens.begin(), query_tokens.end(), token) -
                                query_tokens.begin());
  };
  lists_.segments.clear();
  for (const Segment& s : batch.segments) {
    const Segment prefix = s.prefix < 0 ? Segment{0, 0, -1} : batch.segments[s.prefix];
    lists_.segments.push_back({s.begin, s.end, prefix.begin, prefix.end, place(s.begin), place(s.end)});
  }
  plan.set(lists_.segments, query_tokens, static_cast<int64_t>(batch.tokens.size()));
}

void ModelInput::upload(const PackedBatch& batch) {
  const bool on_gpu = device_ == Device::cuda;  // only there are the plans' tables wanted
  const RowGroups groups = tokens_grouped_.view(), hidden = rows_grouped_.view();
  Tensor tables, last_tables, sequences, device_sequences;
  if constexpr (cuda_built)
    if (cudnn_) sequences = sequences_.tables();
  upload_.send({{view(lists_.tokens), &tokens_},
                {view(batch.positions), &positions_},
                {view(lists_.own_rows), &own_rows_},
                {view(lists_.row_positions), &row_positions_},
                {view(lists_.note_places), &note_places_},
                {view(lists_.label_places), &label_places_},
                {view(lists_.labels), &labels_},
                {groups.target, &rows_of_tokens_.target},
                {groups.begin, &rows_of_tokens_.begin},
                {groups.rows, &rows_of_tokens_.rows},
                {hidden.target, &hidden_rows_of_rows_.target},
                {hidden.begin, &hidden_rows_of_rows_.begin},
                {hidden.rows, &hidden_rows_of_rows_.rows},
                {on_gpu ? plan_.tables() : Tensor(), &tables},
                {on_gpu ? last_plan_.tables() : Tensor(), &last_tables},
                {sequences, &device_sequences}});
  if (!on_gpu) return;
  plan_.set_device_tables(tables);
  last_plan_.set_device_tables(last_tables);
  if constexpr (cuda_built)
    if (cudnn_) sequences_.set_device_tables(device_sequences);
}

}  // namespace notellm

#include "training/gradients.h"

namespace notellm {
namespace {

struct Elements {
  int64_t whole, layer_shards;
};
Elements elements_of(const ParameterLayout& layout, const ShardMap& shards, int held) {
  return {held_elements(layout, held), held == all_layers ? 0 : shards.size()};
}

}  // namespace

int64_t Gradients::memory_bytes(const ParameterLayout& layout, const ShardMap& shards) {
  const Elements elements = elements_of(layout, shards, held_of(shards));
  return (elements.whole + elements.layer_shards) * size_of(DType::f32);
}

Gradients::Gradients(const ParameterLayout& layout, const ShardMap& shards, Device device, Mesh& mesh)
    : layout_(layout),
      shards_(shards),
      whole_(elements_of(layout, shards, held_of(shards)).whole * size_of(DType::f32), memory_of(device), "gradients"),
      layer_shards_(elements_of(layout, shards, held_of(shards)).layer_shards * size_of(DType::f32), memory_of(device),
                    "gradients"),
      sums_(device, mesh.data) {
  const int held = held_of(shards);
  views_.emplace(layout, held_buckets(layout, held, whole_.tensor(DType::f32, {held_elements(layout, held)})));
  for (size_t i = 0; i < shards.pieces().size(); ++i) {
    const ShardMap::Piece& piece = shards.pieces()[i];
    if (!shards.sharded())
      pieces_.push_back(whole_.tensor(DType::f32, {layout.size()}));
    else if (layers_come_and_go() && is_layer(i))
      pieces_.push_back(
          layer_shards_.tensor(DType::f32, {shards.size()}).slice(piece.at, piece.at + piece.flat.size()));
    else
      pieces_.push_back(own_place(i));
  }
}

Tensor Gradients::own_place(size_t bucket) const { return shards_.own_place(layout_, bucket, views_->buckets[bucket]); }

void Gradients::begin(Stream& stream) {
  first_pass_ = true;
  for (size_t i = 0; i < views_->buckets.size(); ++i)
    if (!layers_come_and_go() || !is_layer(i)) set_zero(stream, views_->buckets[i]);
}

// The sum so far stands in the rank's own place: the sum over the ranks adds it again, once.
void Gradients::begins(Stream& stream, int layer) {
  if (!layers_come_and_go()) return;
  const size_t bucket = static_cast<size_t>(layer) + 1;
  sums_.wait(stream, "gradients", free_[layer % held_layers]);
  set_zero(stream, views_->buckets[bucket]);
  if (!first_pass_) copy(stream, pieces_[bucket], own_place(bucket));
}

void Gradients::done(Stream& stream, Transformer& transformer, int layer, bool last) {
  if (last) transformer.sum_copies(stream, views_->layers[layer]);
  const size_t bucket = static_cast<size_t>(layer) + 1;
  if (layers_come_and_go())
    free_[layer % held_layers] = begin_sum(stream, bucket);
  else if (last && sums_.beside())
    begin_sum(stream, bucket);
  if (layer == 0) first_pass_ = false;
}

void Gradients::finish(Stream& stream, Transformer& transformer) {
  transformer.sum_copies(stream, *views_);
  const bool layers_too = !layers_come_and_go() && !sums_.beside();
  for (size_t i = 0; i < views_->buckets.size(); ++i)
    if (layers_too || !is_layer(i)) begin_sum(stream, i);
  sums_.wait(stream, "gradients", begun_);
}

// Over the data group: of the whole bucket, or of the rank's piece of it.
void Gradients::sum(Stream& stream, Communicator& data, size_t bucket) {
  const Tensor all = views_->buckets[bucket];
  if (!shards_.sharded()) return data.all_reduce_sum(stream, "gradients", all);
  const Tensor own = own_place(bucket);
  const std::vector<int64_t> rows_of(static_cast<size_t>(data.size()), own.rows());
  data.reduce_scatter_rows(stream, "gradients", all, rows_of, own);
  if (layers_come_and_go() && is_layer(bucket)) copy(stream, own, pieces_[bucket]);
}

int64_t Gradients::begin_sum(Stream& stream, size_t bucket) {
  return begun_ = sums_.begin(stream, [=, this](Stream& s, Communicator& data) { sum(s, data, bucket); });
}

}  // namespace notellm

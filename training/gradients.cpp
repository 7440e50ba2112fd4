#include "training/gradients.h"

namespace notellm {
namespace {

struct Elements {
  int64_t whole, layer_shards;
};
// `held`: layers that are there at once where they come and go.
Elements elements_of(const ParameterLayout& layout, const ShardMap& shards, int held) {
  if (shards.sharding() < Sharding::gradients) return {layout.size(), 0};
  const auto& buckets = layout.buckets();
  return {buckets.front().size() + held * buckets[1].size() + buckets.back().size(), shards.size()};
}

}  // namespace

int64_t Gradients::memory_bytes(const ParameterLayout& layout, const ShardMap& shards) {
  const Elements elements = elements_of(layout, shards, held_layers);
  return (elements.whole + elements.layer_shards) * size_of(DType::f32);
}

Gradients::Gradients(const ParameterLayout& layout, const ShardMap& shards, Device device, Mesh& mesh)
    : layout_(layout),
      shards_(shards),
      mesh_(mesh),
      whole_(elements_of(layout, shards, held_layers).whole * size_of(DType::f32), memory_of(device), "gradients"),
      layer_shards_(elements_of(layout, shards, held_layers).layer_shards * size_of(DType::f32), memory_of(device),
                    "gradients"),
      sums_(device),
      ready_(device),
      done_(device),
      free_{Event(device), Event(device)} {
  views_.emplace(layout, memory_of_buckets());
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

std::vector<Tensor> Gradients::memory_of_buckets() const {
  const Tensor flat = whole_.tensor(DType::f32, {elements_of(layout_, shards_, held_layers).whole});
  std::vector<Tensor> memory;
  const auto& buckets = layout_.buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    int64_t begin = buckets[i].begin;
    if (layers_come_and_go() && i > 0)
      begin = buckets[0].size() +
              buckets[1].size() * (is_layer(i) ? static_cast<int64_t>(i - 1) % held_layers : int64_t{held_layers});
    memory.push_back(flat.slice(begin, begin + buckets[i].size()));
  }
  return memory;
}

Tensor Gradients::own_place(size_t bucket) const {
  const FlatRange piece = shards_.pieces()[bucket].flat;
  const int64_t begin = layout_.buckets()[bucket].begin;
  return views_->buckets[bucket].slice(piece.begin - begin, piece.end - begin);
}

void Gradients::begin(Stream& stream) {
  first_pass_ = true;
  for (size_t i = 0; i < views_->buckets.size(); ++i)
    if (!layers_come_and_go() || !is_layer(i)) set_zero(stream, views_->buckets[i]);
}

// The sum so far stands in the rank's own place: the sum over the ranks adds it again, once.
void Gradients::begins(Stream& stream, int layer) {
  if (!layers_come_and_go()) return;
  const size_t bucket = static_cast<size_t>(layer) + 1;
  free_[layer % held_layers].wait(stream);
  set_zero(stream, views_->buckets[bucket]);
  if (!first_pass_) copy(stream, pieces_[bucket], own_place(bucket));
}

void Gradients::done(Stream& stream, Transformer& transformer, int layer, bool last) {
  if (last) transformer.sum_copies(stream, views_->layers[layer]);
  const size_t bucket = static_cast<size_t>(layer) + 1;
  if (layers_come_and_go()) {
    ready_.record(stream);
    ready_.wait(sums_);
    sum(sums_, bucket);
    copy(sums_, own_place(bucket), pieces_[bucket]);
    free_[layer % held_layers].record(sums_);
  } else if (last && stream.on_gpu()) {
    ready_.record(stream);
    ready_.wait(sums_);
    sum(sums_, bucket);
  }
  if (layer == 0) first_pass_ = false;
}

void Gradients::finish(Stream& stream, Transformer& transformer) {
  transformer.sum_copies(stream, *views_);
  ready_.record(stream);
  ready_.wait(sums_);
  const bool layers_too = !layers_come_and_go() && !stream.on_gpu();
  for (size_t i = 0; i < views_->buckets.size(); ++i)
    if (layers_too || !is_layer(i)) sum(sums_, i);
  done_.record(sums_);
  done_.wait(stream);
}

// Over the data group: of the whole bucket, or of the rank's piece of it.
void Gradients::sum(Stream& stream, size_t bucket) {
  const Tensor all = views_->buckets[bucket];
  if (!shards_.sharded()) return mesh_.data.all_reduce_sum(stream, "gradients", all);
  const Tensor own = own_place(bucket);
  const std::vector<int64_t> rows_of(static_cast<size_t>(mesh_.data.size()), own.rows());
  mesh_.data.reduce_scatter_rows(stream, "gradients", all, rows_of, own);
}

}  // namespace notellm

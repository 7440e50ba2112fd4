#include "training/model_weights.h"

#include "kernels/convert.h"

namespace notellm {
namespace {

struct Bytes {
  int64_t whole, shards;
};
Bytes bytes_of(const ParameterLayout& layout, const ShardMap& shards, DType compute) {
  if (compute == DType::f32 && !shards.sharded()) return {0, 0};
  const bool come_and_go = shards.sharding() == Sharding::parameters;
  return {held_elements(layout, come_and_go ? LayerWindow::held_layers : all_layers) * size_of(compute),
          come_and_go && compute != DType::f32 ? shards.size() * size_of(compute) : 0};
}

}  // namespace

int64_t ModelWeights::memory_bytes(const ParameterLayout& layout, const ShardMap& shards, DType compute) {
  const Bytes bytes = bytes_of(layout, shards, compute);
  return bytes.whole + bytes.shards;
}

ModelWeights::ModelWeights(const ParameterLayout& layout, const ShardMap& shards, Tensor master, DType compute,
                           Device device, Communicator& data)
    : layout_(layout),
      shards_(shards),
      master_(master),
      compute_(compute),
      device_(device),
      data_(data),
      whole_(bytes_of(layout, shards, compute).whole, memory_of(device), "parameters"),
      shards_memory_(bytes_of(layout, shards, compute).shards, memory_of(device), "parameters"),
      window_(static_cast<int>(layout.buckets().size()) - 2) {
  if (layers_come_and_go()) gathers_.emplace(device, data);
  const int held = layers_come_and_go() ? held_layers : all_layers;
  views_.emplace(
      layout, held_buckets(layout, held, is_master() ? master : whole_.tensor(compute, {held_elements(layout, held)})));
  for (size_t i = 0; i < shards.pieces().size(); ++i) {
    const ShardMap::Piece& piece = shards.pieces()[i];
    if (compute == DType::f32)
      narrow_.push_back({});
    else if (!shards.sharded())
      narrow_.push_back(whole_.tensor(compute, {layout.size()}));
    else if (comes_and_goes(i))
      narrow_.push_back(shards_memory_.tensor(compute, {shards.size()}).slice(piece.at, piece.at + piece.flat.size()));
    else
      narrow_.push_back(own_place(i));
  }
}

Tensor ModelWeights::own_place(size_t bucket) const {
  return shards_.own_place(layout_, bucket, views_->buckets[bucket]);
}

void ModelWeights::gather_bucket(Stream& stream, Communicator& data, size_t bucket, Tensor piece) {
  const std::vector<int64_t> rows_of(static_cast<size_t>(data.size()), piece.rows());
  data.all_gather_rows(stream, "parameters", piece, rows_of, views_->buckets[bucket]);
}

void ModelWeights::gather(Stream& stream) {
  if (!shards_.sharded()) return;
  for (size_t i = 0; i < shards_.pieces().size(); ++i) {
    if (comes_and_goes(i)) continue;
    const ShardMap::Piece& piece = shards_.pieces()[i];
    if (compute_ == DType::f32) copy(stream, master_.slice(piece.at, piece.at + piece.flat.size()), own_place(i));
    gather_bucket(stream, data_, i, own_place(i));
  }
  window_.forget();
}

void ModelWeights::refresh() {
  Stream stream(device_);
  for (size_t i = 0; i < narrow_.size(); ++i) {
    const ShardMap::Piece& piece = shards_.pieces()[i];
    if (!narrow_[i].empty()) convert(stream, master_.slice(piece.at, piece.at + piece.flat.size()), narrow_[i]);
  }
  gather(stream);
  stream.synchronize();
}

void ModelWeights::fetch(Stream& stream, int layer) {
  const size_t bucket = static_cast<size_t>(layer) + 1;
  const ShardMap::Piece& piece = shards_.pieces()[bucket];
  const Tensor own = compute_ == DType::f32 ? master_.slice(piece.at, piece.at + piece.flat.size()) : narrow_[bucket];
  // Behind whoever reads what stands there now, or writes the piece.
  arrived_[layer % held_layers] =
      gathers_->begin(stream, [=, this](Stream& s, Communicator& data) { gather_bucket(s, data, bucket, own); });
}

void ModelWeights::begins(Stream& stream, int layer) {
  if (!layers_come_and_go()) return;
  const LayerWindow::Fetch fetches = window_.begins(layer);
  if (fetches.itself) fetch(stream, layer);
  gathers_->wait(stream, "parameters", arrived_[layer % held_layers]);
  if (fetches.next >= 0) fetch(stream, fetches.next);
}

}  // namespace notellm

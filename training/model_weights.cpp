#include "training/model_weights.h"

#include "kernels/convert.h"

namespace notellm {
namespace {

// Of the widest layer, held as often as there is memory for.
int64_t elements(const ParameterLayout& layout, bool layers_come_and_go, int held) {
  if (!layers_come_and_go) return layout.size();
  const auto& buckets = layout.buckets();
  return buckets.front().size() + held * buckets[1].size() + buckets.back().size();
}

struct Bytes {
  int64_t whole, shards;
};
Bytes bytes_of(const ParameterLayout& layout, const ShardMap& shards, DType compute) {
  if (compute == DType::f32 && !shards.sharded()) return {0, 0};
  const bool come_and_go = shards.sharding() == Sharding::parameters;
  return {elements(layout, come_and_go, LayerWindow::held_layers) * size_of(compute),
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
      data_(data),
      whole_(bytes_of(layout, shards, compute).whole, memory_of(device), "parameters"),
      shards_memory_(bytes_of(layout, shards, compute).shards, memory_of(device), "parameters"),
      gathers_(device),
      ready_(device),
      arrived_{Event(device), Event(device), Event(device)},
      window_(static_cast<int>(layout.buckets().size()) - 2) {
  views_.emplace(layout, memory_of_buckets());
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

std::vector<Tensor> ModelWeights::memory_of_buckets() const {
  const Tensor flat =
      is_master() ? master_ : whole_.tensor(compute_, {elements(layout_, layers_come_and_go(), held_layers)});
  std::vector<Tensor> memory;
  const auto& buckets = layout_.buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    int64_t begin = buckets[i].begin;
    if (layers_come_and_go() && i > 0) {
      const bool rest = i + 1 == buckets.size();
      begin = buckets[0].size() + buckets[1].size() * (rest ? held_layers : static_cast<int64_t>(i - 1) % held_layers);
    }
    memory.push_back(flat.slice(begin, begin + buckets[i].size()));
  }
  return memory;
}

Tensor ModelWeights::own_place(size_t bucket) const {
  const FlatRange piece = shards_.pieces()[bucket].flat;
  const int64_t begin = layout_.buckets()[bucket].begin;
  return views_->buckets[bucket].slice(piece.begin - begin, piece.end - begin);
}

void ModelWeights::gather_bucket(Stream& stream, size_t bucket, Tensor piece) {
  const std::vector<int64_t> rows_of(static_cast<size_t>(data_.size()), piece.rows());
  data_.all_gather_rows(stream, "parameters", piece, rows_of, views_->buckets[bucket]);
}

void ModelWeights::gather(Stream& stream) {
  if (!shards_.sharded()) return;
  for (size_t i = 0; i < shards_.pieces().size(); ++i) {
    if (comes_and_goes(i)) continue;
    const ShardMap::Piece& piece = shards_.pieces()[i];
    if (compute_ == DType::f32) copy(stream, master_.slice(piece.at, piece.at + piece.flat.size()), own_place(i));
    gather_bucket(stream, i, own_place(i));
  }
  window_.forget();
}

void ModelWeights::refresh() {
  Stream stream(gathers_.device());
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
  ready_.record(stream);  // behind whoever reads what stands there now, or writes the piece
  ready_.wait(gathers_);
  gather_bucket(gathers_, bucket,
                compute_ == DType::f32 ? master_.slice(piece.at, piece.at + piece.flat.size()) : narrow_[bucket]);
  arrived_[layer % held_layers].record(gathers_);
}

void ModelWeights::begins(Stream& stream, int layer) {
  if (!layers_come_and_go()) return;
  const LayerWindow::Fetch fetches = window_.begins(layer);
  if (fetches.itself) fetch(stream, layer);
  arrived_[layer % held_layers].wait(stream);
  if (fetches.next >= 0) fetch(stream, fetches.next);
}

}  // namespace notellm

// The weights that the model computes with, in f32 or bf16: whole on each data rank, or gathered layer by layer.
#pragma once

#include <array>
#include <optional>

#include "runtime/communicator.h"
#include "runtime/memory.h"
#include "runtime/side_collectives.h"
#include "training/layer_window.h"
#include "training/sharding.h"

namespace notellm {

class ModelWeights {
 public:
  // master: Optimizer::weights(), which in f32 and without sharding are these weights themselves. data: the ranks that
  // share the shards. The references must live as long as this.
  ModelWeights(const ParameterLayout& layout, const ShardMap& shards, Tensor master, DType compute, Device device,
               Communicator& data);

  // In f32 without sharding none: the master weights serve.
  static int64_t memory_bytes(const ParameterLayout& layout, const ShardMap& shards, DType compute);
  int64_t memory_bytes() const { return whole_.bytes() + shards_memory_.bytes(); }

  // With sharding: parameters a layer's are there only between begins(layer) and the begins of the next but one.
  const Weights& views() const { return *views_; }
  // For each piece of the rank, what an update writes in bf16; in f32 empty.
  const std::vector<Tensor>& narrow() const { return narrow_; }
  // After the master weights, and narrow(), have changed: all ranks' pieces to where they are needed. A collective of
  // the data group.
  void gather(Stream& stream);
  // … after the master weights were written from outside.
  void refresh();
  // PassHooks::begins: what `stream` does from now on reads this layer. The next one's way is begun.
  void begins(Stream& stream, int layer);

 private:
  static constexpr int held_layers = LayerWindow::held_layers;

  bool is_master() const { return compute_ == DType::f32 && !shards_.sharded(); }
  bool layers_come_and_go() const { return shards_.sharding() == Sharding::parameters; }
  bool comes_and_goes(size_t bucket) const {
    return layers_come_and_go() && bucket != 0 && bucket + 1 != layout_.buckets().size();
  }
  Tensor own_place(size_t bucket) const;  // of the rank's piece in the whole bucket
  void gather_bucket(Stream& stream, Communicator& data, size_t bucket, Tensor piece);
  void fetch(Stream& stream, int layer);

  const ParameterLayout& layout_;
  const ShardMap& shards_;
  Tensor master_;
  DType compute_;
  Device device_;
  Communicator& data_;
  Buffer whole_;          // the flat array; with sharding: parameters embedding, held_layers layers, the rest
  Buffer shards_memory_;  // bf16 with sharding: parameters: all pieces
  std::optional<Weights> views_;
  std::vector<Tensor> narrow_;
  // With sharding: parameters.
  std::optional<SideCollectives> gathers_;
  std::array<int64_t, held_layers> arrived_ = {};
  LayerWindow window_;
};

}  // namespace notellm

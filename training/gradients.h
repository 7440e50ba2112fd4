// The gradients of a step: summed over ranks and micro-batches, whole or in shards (training/sharding.h).
//
// A layer's are summed over the data group as soon as they are complete, while the layers below are computed, where
// that goes on beside them (runtime/side_collectives.h); elsewhere what is whole is summed in the end.
#pragma once

#include <array>
#include <optional>

#include "model/transformer.h"
#include "runtime/mesh.h"
#include "runtime/side_collectives.h"
#include "training/sharding.h"

namespace notellm {

class Gradients {
 public:
  // The references must live as long as this.
  Gradients(const ParameterLayout& layout, const ShardMap& shards, Device device, Mesh& mesh);

  static int64_t memory_bytes(const ParameterLayout& layout, const ShardMap& shards);
  int64_t memory_bytes() const { return whole_.bytes() + layer_shards_.bytes(); }

  // f32. With sharding: gradients and parameters a layer's are there between begins(layer) and done(layer).
  const Weights& views() const { return *views_; }
  // The rank's, one for each of its pieces: after finish().
  const std::vector<Tensor>& pieces() const { return pieces_; }

  // All zero. Then for each micro-batch a backward pass with these hooks, the last one with `last`; then finish().
  void begin(Stream& stream);
  void begins(Stream& stream, int layer);
  void done(Stream& stream, Transformer& transformer, int layer, bool last);
  // What `stream` does from now on finds the sums over all ranks in pieces().
  void finish(Stream& stream, Transformer& transformer);

 private:
  static constexpr int held_layers = 2;  // one that is computed, one that is summed

  static int held_of(const ShardMap& shards) {
    return shards.sharding() >= Sharding::gradients ? held_layers : all_layers;
  }
  bool layers_come_and_go() const { return held_of(shards_) != all_layers; }
  bool is_layer(size_t bucket) const { return bucket != 0 && bucket + 1 != layout_.buckets().size(); }
  Tensor own_place(size_t bucket) const;  // of the rank's piece in the whole bucket
  void sum(Stream& stream, Communicator& data, size_t bucket);
  int64_t begin_sum(Stream& stream, size_t bucket);

  const ParameterLayout& layout_;
  const ShardMap& shards_;
  Buffer whole_;         // the flat array; or embedding, held_layers layers, the rest
  Buffer layer_shards_;  // where layers come and go: their pieces
  std::optional<Weights> views_;
  std::vector<Tensor> pieces_;
  bool first_pass_ = true;
  SideCollectives sums_;                        // ends before the memory that it uses
  int64_t begun_ = 0;                           // the newest sum
  std::array<int64_t, held_layers> free_ = {};  // the sum after which a held layer's place is free
};

}  // namespace notellm

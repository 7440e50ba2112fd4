// Which data rank keeps what of the model (ZeRO, arXiv 1910.02054).
//
//     sharding    master weights, moments   gradients           weights that the model computes with
//     none        each rank all             each rank all       each rank all
//     optimizer   a shard a rank            each rank all       each rank all, gathered after the update
//     gradients   a shard a rank            a shard a rank¹     each rank all, gathered after the update
//     parameters  a shard a rank            a shard a rank¹     a shard a rank², a layer's gathered when it is needed
//
// ¹ and two layers' that are being computed; ² and three layers' that are in use. The embedding and what is in no layer
// (final norm, head, note head) are not sharded in these two columns.
#pragma once

#include <functional>
#include <vector>

#include "model/parameters.h"

namespace notellm {

enum class Sharding { none, optimizer, gradients, parameters };

// Memory of a layout's buckets in which only `held` layers have room at a time, each in the place of the one `held`
// layers before: embedding, these layers, the rest. all_layers: every one has its own, in the order of the layout.
inline constexpr int all_layers = 0;
int64_t held_elements(const ParameterLayout& layout, int held);
// Each bucket's part of such memory, [held_elements] of any dtype.
std::vector<Tensor> held_buckets(const ParameterLayout& layout, int held, Tensor memory);

class ShardMap {
 public:
  // The layout must have been made for as many shards as there are data ranks, unless sharding is none.
  ShardMap(const ParameterLayout& layout, Sharding sharding, int data_rank, int data_ranks);
  // All of it on one rank.
  explicit ShardMap(const ParameterLayout& layout) : ShardMap(layout, Sharding::none, 0, 1) {}

  // What the rank keeps: elements of the flat array, and where they stand in arrays that hold its pieces alone. One of
  // each bucket; without sharding the whole array as one, in its own order.
  struct Piece {
    FlatRange flat;
    int64_t at;
  };
  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t size() const { return size_; }  // elements of all pieces
  // With sharding: where the rank's piece of a bucket stands in the whole bucket.
  Tensor own_place(const ParameterLayout& layout, size_t bucket, Tensor whole) const;

  Sharding sharding() const { return sharding_; }
  bool sharded() const { return sharding_ != Sharding::none; }

  // Calls f with each run of a parameter's elements that the rank keeps: element `first` of the parameter's part stands
  // `at` in the arrays of pieces. Of all parameters, or of one.
  struct Run {
    const Parameter& parameter;
    int64_t first, count, at;
  };
  using TakeRun = std::function<void(const Run&)>;
  void for_runs(const ParameterLayout& layout, const TakeRun& take) const;
  void for_runs(const Parameter& parameter, const TakeRun& take) const;
  // … with what several ranks keep alike (copies in a tensor group; without sharding, data ranks) shared out evenly
  // among them: over all ranks, each element of the whole model once.
  void for_own_runs(const ParameterLayout& layout, const TakeRun& take) const;

 private:
  Sharding sharding_;
  int data_rank_, data_ranks_;
  std::vector<Piece> pieces_;
  int64_t size_ = 0;
};

}  // namespace notellm

#include "model/transformer.h"

#include <algorithm>

#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/gemm_panels.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "model/transformer_pass.h"

namespace notellm {

Transformer::Transformer(const ModelConfig& config, DType compute, Device device, TransformerOptions options,
                         Communicator* tensor)
    : config_(config_of_part(config, tensor ? tensor->size() : 1)),
      compute_(compute),
      device_(device),
      recompute_(options.recompute),
      alone_(Communicator::self()),
      tensor_(tensor ? *tensor : alone_),
      share_({tensor_.rank(), tensor_.size()}, device) {
  NOTELLM_CHECK(config.head_dim > 0, "ModelConfig::finish() has not been called");
  if (const int copies = tensor_.size() / std::min(config.kv_heads, tensor_.size()); copies > 1)
    kv_copies_.emplace(tensor_.split("kv head group", tensor_.rank() / copies));
  Buffer table(static_cast<int64_t>(config.context) * config.head_dim * 4);
  rope_ = table.tensor(DType::f32, {config.context, 2, config.head_dim / 2});
  rope_table(rope_frequencies(config), rope_);
  rope_memory_ = on_device(device, std::move(table));
  rope_.data = rope_memory_.data();
  if (config.qkv_bias) {
    const int64_t rows = tile_rows_of(device);
    Buffer ones(rows * size_of(compute));
    if (compute == DType::f32)
      std::fill_n(static_cast<float*>(ones.data()), rows, 1.0f);
    else
      std::fill_n(static_cast<bf16*>(ones.data()), rows, bf16(1));
    ones_memory_ = on_device(device, std::move(ones));
    ones_ = ones_memory_.tensor(compute, {rows, 1});
  }
  if constexpr (cuda_built)
    if (options.cudnn) cudnn_.emplace(compute, CudnnHeads{config_.heads, config_.kv_heads, config_.head_dim});
}

// What a layer computes from its input.
void Transformer::allocate_work(Layer& l, int64_t n, int64_t r, Arena& arena) const {
  const int64_t own_rows = share_.own_count(r);
  l.q = arena.allocate(compute_, {r, config_.heads, config_.head_dim});
  l.kv = arena.allocate(compute_, {n, 2 * config_.kv_heads, config_.head_dim});
  l.o = arena.allocate(compute_, {r, config_.heads, config_.head_dim});
  l.lse = arena.allocate(DType::f32, {r, config_.heads});
  l.middle = arena.allocate(compute_, {own_rows, config_.dim});
  l.middle_rms = arena.allocate(DType::f32, {own_rows});
  l.gate_up = arena.allocate(compute_, {r, 2 * config_.ffn});
}

void Transformer::allocate_input(Layer& l, int64_t n, Arena& arena) const {
  l.x = arena.allocate(compute_, {share_.own_count(n), config_.dim});
  l.inv_rms = arena.allocate(DType::f32, {share_.own_count(n)});
}

// Layers that nobody will ask for again have one memory: a layer reads of the one before it only rows that it has not
// yet written.
void Transformer::allocate_layers(const ModelInput& input, Arena& arena, bool keep) {
  const int64_t n = input.tokens(), r = input.hidden_rows(), own_rows = share_.own_count(r);
  layers_.assign(static_cast<size_t>(config_.layers), {});
  for (int i = 0; i < config_.layers; ++i) {
    Layer& l = layers_[i];
    if (is_last(i)) {
      allocate_work(l, n, r, arena);
    } else if (i > 0 && (!keep || recompute_)) {
      l = layers_[0];
    } else {
      allocate_work(l, n, n, arena);
    }
    if (keep || i == 0) {
      allocate_input(l, n, arena);
    } else {
      l.x = layers_[0].x;
      l.inv_rms = layers_[0].inv_rms;
    }
    l.residual = is_last(i) ? arena.allocate(compute_, {own_rows, config_.dim}) : l.x;
    l.query_rms = is_last(i) ? arena.allocate(DType::f32, {own_rows}) : l.inv_rms;
  }
  final_x_ = arena.allocate(compute_, {own_rows, config_.dim});
  final_rms_ = arena.allocate(DType::f32, {own_rows});
}

Tensor Transformer::forward(Stream& stream, const Weights& weights, const ModelInput& input, Arena& arena, bool keep,
                            const PassHooks& hooks) {
  const Pass pass{stream, weights, input, arena, hooks};
  const int64_t n = input.tokens(), r = input.hidden_rows();
  const Tensor hidden = arena.allocate(compute_, {r, config_.dim});
  const int64_t mark = arena.mark();
  allocate_layers(input, arena, keep);
  if (hooks.keys_and_values)
    for (int i = 0; i < config_.layers; ++i) layers_[i].kv = hooks.keys_and_values(i);
  pass.begins(0);
  for_tiles(arena, n, [&](int64_t begin, int64_t end) { embed_tile(pass, {begin, end}); });
  attend(pass, 0);
  for (int l = 1; l < config_.layers; ++l) {
    pass.begins(l);
    for_tiles(arena, n, [&](int64_t begin, int64_t end) {
      const Rows tile{begin, end};
      const Tensor delta = finish_tile(pass, l - 1, tile);
      begin_tile(pass, l, own(layers_[l - 1].middle, tile), delta, tile);
    });
    attend(pass, l);
  }
  for_tiles(arena, r, [&](int64_t begin, int64_t end) {
    const Rows tile{begin, end};
    const Tensor delta = finish_tile(pass, config_.layers - 1, tile), all = hidden.slice(begin, end);
    rms_norm(stream, own(layers_.back().middle, tile), delta, weights.final_norm, config_.norm_eps, own(final_x_, tile),
             share_.own_part(all), own(final_rms_, tile));
    share_.gather(stream, tensor_, "hidden rows", all);
  });
  if (!keep) arena.rewind(mark);
  return hidden;
}

// A part of the vocabulary has zeros for tokens of the others: the sum over the ranks has all.
void Transformer::embed_tile(const Pass& pass, Rows tile) {
  const Tensor x = own(layers_[0].x, tile), sums = tile_of_sums(pass, x, tile);
  embedding(pass.stream, pass.input.tokens_.slice(tile.begin, tile.end), pass.weights.embedding, sums);
  settle(pass, "embedded rows", sums, x);
  begin_tile(pass, 0, x, {}, tile);
}

// The residual stream x + delta and its norm; keys, values and (but in the last layer) queries from it.
void Transformer::begin_tile(const Pass& pass, int layer, Tensor x, Tensor delta, Rows tile) {
  Layer& l = layers_[layer];
  const Tensor y = gathered(pass, "normed rows", tile, [&](Tensor own_y) {
    rms_norm(pass.stream, x, delta, pass.weights.layers[layer].input_norm, config_.norm_eps, own(l.x, tile), own_y,
             own(l.inv_rms, tile));
  });
  keys_and_queries(pass, layer, y, tile);
}

void Transformer::keys_and_queries(const Pass& pass, int layer, Tensor y, Rows tile) {
  const LayerWeights& w = pass.weights.layers[layer];
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor kv = matrix(of_tile(layers_[layer].kv)), positions = of_tile(pass.input.positions_);
  project(pass, y, w.kv, w.kv_bias, kv);
  rope(pass.stream, kv, positions, rope_, config_.kv_heads, config_.head_dim, +1);
  if (is_last(layer)) return;
  const Tensor q = matrix(of_tile(layers_[layer].q));
  project(pass, y, w.q, w.q_bias, q);
  rope(pass.stream, q, positions, rope_, config_.heads, config_.head_dim, +1);
}

// to = y·weightᵀ + bias, rounded once: the product is added to the bias, of which each row first gets a copy, exact in
// whatever type.
void Transformer::project(const Pass& pass, Tensor y, Tensor weight, Tensor bias, Tensor to) const {
  if (!bias.empty()) gemm(pass.stream, ones_.slice(0, y.rows()), as_is, bias.reshape({1, bias.rows()}), as_is, to);
  gemm(pass.stream, y, as_is, weight, transposed, to, !bias.empty());
}

// The queries of the last layer, at the rows that go on.
void Transformer::begin_last_queries(const Pass& pass) {
  Layer& l = layers_.back();
  const LayerWeights& w = pass.weights.layers.back();
  for_tiles(pass.arena, l.q.rows(), [&](int64_t begin, int64_t end) {
    const Rows tile{begin, end};
    const Tensor residual = own(l.residual, tile), sums = tile_of_sums(pass, residual, tile);
    gather_rows(pass.stream, l.x, pass.input.own_rows_.slice(begin, end), sums);
    settle(pass, "hidden rows", sums, residual);
    const Tensor y = gathered(pass, "normed rows", tile, [&](Tensor own_y) {
      rms_norm(pass.stream, residual, {}, w.input_norm, config_.norm_eps, {}, own_y, own(l.query_rms, tile));
    });
    const Tensor q = matrix(l.q.slice(begin, end));
    project(pass, y, w.q, w.q_bias, q);
    rope(pass.stream, q, pass.input.row_positions_.slice(begin, end), rope_, config_.heads, config_.head_dim, +1);
  });
}

void Transformer::attend(const Pass& pass, int layer) {
  if (is_last(layer)) begin_last_queries(pass);
  const Layer& l = layers_[layer];
  if constexpr (cuda_built)
    if (by_cudnn(layer)) {
      const int64_t mark = pass.arena.mark();
      const CudnnSequences& sequences = pass.input.sequences_;
      cudnn_->forward(pass.stream, sequences, l.q, l.kv, l.o, l.lse,
                      pass.allocate(DType::f32, {cudnn_->workspace(sequences, false)}));
      pass.arena.rewind(mark);
      return;
    }
  attention(pass.stream, pass.input.plan_of(is_last(layer)), l.q, l.kv, l.o, l.lse);
}

// From attention's output to the residual stream after it, and its norm, in the arena. `sums`: scratch [tile's rows,
// dim].
Tensor Transformer::middle_tile(const Pass& pass, int layer, Rows tile, Tensor sums) {
  Layer& l = layers_[layer];
  const LayerWeights& w = pass.weights.layers[layer];
  gemm(pass.stream, matrix(l.o.slice(tile.begin, tile.end)), as_is, w.o, transposed, sums);
  share_.reduce(pass.stream, tensor_, "attention outputs", sums);
  return gathered(pass, "normed rows", tile, [&](Tensor own_y) {
    rms_norm(pass.stream, own(l.residual, tile), share_.own_part(sums), w.post_norm, config_.norm_eps,
             own(l.middle, tile), own_y, own(l.middle_rms, tile));
  });
}

// inner = swiglu(gate_up), gate_up = y·weightᵀ; with weights in panels gate_up is not written.
void Transformer::gate(const Pass& pass, Tensor y, Tensor weight, Tensor gate_up, Tensor inner) const {
  if (weight.dtype == DType::bf16_gated_panels) return gemm_swiglu(y, weight, inner);
  gemm(pass.stream, y, as_is, weight, transposed, gate_up);
  swiglu(pass.stream, gate_up, inner);
}

// From attention's output to what the layer adds to `middle`: the rank's rows of the tile, in the arena.
Tensor Transformer::finish_tile(const Pass& pass, int layer, Rows tile) {
  const Tensor sums = pass.allocate(compute_, {tile.count(), config_.dim});
  const LayerWeights& w = pass.weights.layers[layer];
  const Tensor y = middle_tile(pass, layer, tile, sums), inner = pass.allocate(compute_, {tile.count(), config_.ffn});
  gate(pass, y, w.gate_up, layers_[layer].gate_up.slice(tile.begin, tile.end), inner);
  gemm(pass.stream, inner, as_is, w.down, transposed, sums);
  share_.reduce(pass.stream, tensor_, "layer outputs", sums);
  return share_.own_part(sums);
}

// What forward computed of a layer, from its input; all but what the layer adds in the end.
void Transformer::recompute_layer(const Pass& pass, int layer) {
  const Layer& l = layers_[layer];
  for_tiles(pass.arena, pass.input.tokens(), [&](int64_t begin, int64_t end) {
    const Rows tile{begin, end};
    const Tensor y = gathered(pass, "normed rows", tile, [&](Tensor own_y) {
      rms_norm_apply(pass.stream, own(l.x, tile), pass.weights.layers[layer].input_norm, own(l.inv_rms, tile), own_y);
    });
    keys_and_queries(pass, layer, y, tile);
  });
  attend(pass, layer);
  for_tiles(pass.arena, pass.input.tokens(), [&](int64_t begin, int64_t end) {
    const Tensor y = middle_tile(pass, layer, {begin, end}, pass.allocate(compute_, {end - begin, config_.dim}));
    gemm(pass.stream, y, as_is, pass.weights.layers[layer].gate_up, transposed, l.gate_up.slice(begin, end));
  });
}

Tensor Transformer::tile_of_sums(const Pass& pass, Tensor own, Rows tile) const {
  return share_.part().count == 1 ? own : pass.allocate(own.dtype, {tile.count(), own.cols()});
}

void Transformer::settle(const Pass& pass, const char* name, Tensor sums, Tensor own) const {
  if (share_.part().count == 1) return;
  share_.reduce(pass.stream, tensor_, name, sums);
  copy(pass.stream, share_.own_part(sums), own);
}

Tensor Transformer::all_rows(const Pass& pass, const char* name, Tensor own_rows, Rows tile) const {
  if (share_.part().count == 1) return own_rows;
  return gathered(pass, name, tile, [&](Tensor part) { copy(pass.stream, own_rows, part); });
}

Tensor Transformer::own(Tensor kept, Rows tile) const {
  const Rows rows = share_.own(tile);
  return kept.slice(rows.begin, rows.end);
}

int64_t Transformer::cudnn_workspace(int64_t sequences, int64_t longest) {
  int64_t size = 0;
  if constexpr (cuda_built)
    if (cudnn_) {
      std::vector<AttentionSegment> segments;
      const auto length = static_cast<int32_t>(longest);
      for (int32_t i = 0; i < static_cast<int32_t>(sequences); ++i)
        segments.push_back({i * length, (i + 1) * length, 0, 0, i * length, (i + 1) * length});
      CudnnSequences all;
      all.set(segments, sequences * longest, {config_.heads, config_.kv_heads, config_.head_dim});
      size = std::max(cudnn_->workspace(all, false), cudnn_->workspace(all, true));
    }
  return size;
}

int64_t Transformer::arena_bytes(int64_t tokens, int64_t hidden_rows, bool keep) const {
  const TransformerMemory memory = transformer_memory(shape(), {tokens, hidden_rows}, keep, 0);
  return memory.kept + std::max(memory.forward, memory.backward);
}

}  // namespace notellm

#include "model/transformer.h"

#include <algorithm>

#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "model/tiles.h"

namespace notellm {
namespace {

constexpr Transpose as_is = Transpose::no, transposed = Transpose::yes;

// [rows, heads, head_dim] as a matrix.
Tensor matrix(const Tensor& t) { return t.reshape({t.rows(), t.cols()}); }

}  // namespace

struct Transformer::Pass {
  Stream& stream;
  const Weights& weights;
  const ModelInput& input;
  Arena& arena;
  const Weights* gradients = nullptr;

  Tensor allocate(DType dtype, std::initializer_list<int64_t> sizes) const { return arena.allocate(dtype, sizes); }
};

Transformer::Transformer(const ModelConfig& config, DType compute, Device device, bool cudnn)
    : config_(config), compute_(compute) {
  NOTELLM_CHECK(config.head_dim > 0, "ModelConfig::finish() has not been called");
  Buffer table(static_cast<int64_t>(config.context) * config.head_dim * 4);
  rope_ = table.tensor(DType::f32, {config.context, 2, config.head_dim / 2});
  rope_table(static_cast<float>(config.rope_theta), config.head_dim, rope_);
  rope_memory_ = on_device(device, std::move(table));
  rope_.data = rope_memory_.data();
  if constexpr (cuda_built)
    if (cudnn) cudnn_.emplace(compute, CudnnHeads{config.heads, config.kv_heads, config.head_dim});
}

Transformer::Layer Transformer::allocate_layer(int layer, const ModelInput& input, Arena& arena) const {
  const int64_t n = input.tokens(), r = is_last(layer) ? input.hidden_rows() : n;
  const auto f32 = DType::f32;
  Layer l;
  l.x = arena.allocate(compute_, {n, config_.dim});
  l.inv_rms = arena.allocate(f32, {n});
  l.residual = is_last(layer) ? arena.allocate(compute_, {r, config_.dim}) : l.x;
  l.query_rms = is_last(layer) ? arena.allocate(f32, {r}) : l.inv_rms;
  l.q = arena.allocate(compute_, {r, config_.heads, config_.head_dim});
  l.kv = arena.allocate(compute_, {n, 2 * config_.kv_heads, config_.head_dim});
  l.o = arena.allocate(compute_, {r, config_.heads, config_.head_dim});
  l.lse = arena.allocate(f32, {r, config_.heads});
  l.middle = arena.allocate(compute_, {r, config_.dim});
  l.middle_rms = arena.allocate(f32, {r});
  l.gate_up = arena.allocate(compute_, {r, 2 * config_.ffn});
  return l;
}

Tensor Transformer::forward(Stream& stream, const Weights& weights, const ModelInput& input, Arena& arena, bool keep) {
  const Pass pass{stream, weights, input, arena};
  const int64_t n = input.tokens(), r = input.hidden_rows();
  const Tensor hidden = arena.allocate(compute_, {r, config_.dim});
  const int64_t mark = arena.mark();
  layers_.clear();
  for (int l = 0; l < config_.layers; ++l) {
    // A layer reads only the one before it: what nobody will ask for again makes room for the next but one.
    const bool reuse = !keep && l >= 2 && !is_last(l);
    layers_.push_back(reuse ? layers_[l - 2] : allocate_layer(l, input, arena));
  }
  final_x_ = arena.allocate(compute_, {r, config_.dim});
  final_rms_ = arena.allocate(DType::f32, {r});

  for_tiles(arena, n, [&](int64_t begin, int64_t end) {
    const Tensor x = layers_[0].x.slice(begin, end);
    embedding(stream, input.tokens_.slice(begin, end), weights.embedding, x);
    begin_tile(pass, 0, x, {}, {begin, end});
  });
  attend(pass, 0);
  for (int l = 1; l < config_.layers; ++l) {
    for_tiles(arena, n, [&](int64_t begin, int64_t end) {
      const Tensor delta = finish_tile(pass, l - 1, {begin, end});
      begin_tile(pass, l, layers_[l - 1].middle.slice(begin, end), delta, {begin, end});
    });
    attend(pass, l);
  }
  for_tiles(arena, r, [&](int64_t begin, int64_t end) {
    const Tensor delta = finish_tile(pass, config_.layers - 1, {begin, end});
    rms_norm(stream, layers_.back().middle.slice(begin, end), delta, weights.final_norm, config_.norm_eps,
             final_x_.slice(begin, end), hidden.slice(begin, end), final_rms_.slice(begin, end));
  });
  if (!keep) arena.rewind(mark);
  return hidden;
}

// The residual stream x + delta and its norm; keys, values and (but in the last layer) queries from it.
void Transformer::begin_tile(const Pass& pass, int layer, Tensor x, Tensor delta, Tile tile) {
  Layer& l = layers_[layer];
  const LayerWeights& w = pass.weights.layers[layer];
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor y = pass.allocate(compute_, {tile.end - tile.begin, config_.dim});
  rms_norm(pass.stream, x, delta, w.input_norm, config_.norm_eps, of_tile(l.x), y, of_tile(l.inv_rms));
  const Tensor kv = matrix(of_tile(l.kv)), positions = of_tile(pass.input.positions_);
  gemm(pass.stream, y, as_is, w.kv, transposed, kv);
  rope(pass.stream, kv, positions, rope_, config_.kv_heads, config_.head_dim, +1);
  if (is_last(layer)) return;
  const Tensor q = matrix(of_tile(l.q));
  gemm(pass.stream, y, as_is, w.q, transposed, q);
  rope(pass.stream, q, positions, rope_, config_.heads, config_.head_dim, +1);
}

// The queries of the last layer, at the rows that go on.
void Transformer::begin_last_queries(const Pass& pass) {
  Layer& l = layers_.back();
  const LayerWeights& w = pass.weights.layers.back();
  gather_rows(pass.stream, l.x, pass.input.rows_, l.residual);
  for_tiles(pass.arena, l.residual.rows(), [&](int64_t begin, int64_t end) {
    const Tensor y = pass.allocate(compute_, {end - begin, config_.dim}), q = matrix(l.q.slice(begin, end));
    rms_norm(pass.stream, l.residual.slice(begin, end), {}, w.input_norm, config_.norm_eps, {}, y,
             l.query_rms.slice(begin, end));
    gemm(pass.stream, y, as_is, w.q, transposed, q);
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

// From attention's output to what the layer adds to `middle`: [tile, dim], in the arena.
Tensor Transformer::finish_tile(const Pass& pass, int layer, Tile tile) {
  Layer& l = layers_[layer];
  const LayerWeights& w = pass.weights.layers[layer];
  const int64_t rows = tile.end - tile.begin;
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor delta = pass.allocate(compute_, {rows, config_.dim}), y = pass.allocate(compute_, {rows, config_.dim});
  const Tensor inner = pass.allocate(compute_, {rows, config_.ffn});
  gemm(pass.stream, matrix(of_tile(l.o)), as_is, w.o, transposed, delta);
  rms_norm(pass.stream, of_tile(l.residual), delta, w.post_norm, config_.norm_eps, of_tile(l.middle), y,
           of_tile(l.middle_rms));
  gemm(pass.stream, y, as_is, w.gate_up, transposed, of_tile(l.gate_up));
  swiglu(pass.stream, of_tile(l.gate_up), inner);
  gemm(pass.stream, inner, as_is, w.down, transposed, delta);
  return delta;
}

Tensor Transformer::norm_workspace(const Pass& pass, int64_t rows) const {
  return pass.allocate(DType::f32, {rms_norm_backward_workspace(rows, config_.dim)});
}

void Transformer::backward(Stream& stream, const Weights& weights, const ModelInput& input, Tensor d_hidden,
                           const Weights& gradients, Arena& arena, const LayerDone& layer_done) {
  const Pass pass{stream, weights, input, arena, &gradients};
  const int64_t n = input.tokens(), r = input.hidden_rows(), mark = arena.mark();
  NOTELLM_CHECK(static_cast<int>(layers_.size()) == config_.layers && final_x_.rows() == r,
                "backward without the forward pass of the same batch");
  // Two buffers: the last layer's rows, then all tokens'.
  const Tensor d_last = arena.allocate(compute_, {r, config_.dim}), d_all = arena.allocate(compute_, {n, config_.dim});
  set_zero(stream, d_last);
  set_zero(stream, d_all);
  rms_norm_backward(stream, d_hidden, final_x_, weights.final_norm, final_rms_, d_last, gradients.final_norm,
                    norm_workspace(pass, r));
  for (int layer = config_.layers - 1; layer >= 0; --layer) {
    const int64_t layer_mark = arena.mark();
    const Tensor dx = is_last(layer) ? d_last : d_all;
    const Tensor d_o = arena.allocate(compute_, {dx.rows(), config_.heads, config_.head_dim});
    const Tensor dq = arena.allocate(compute_, {dx.rows(), config_.heads, config_.head_dim});
    for_tiles(arena, dx.rows(), [&](int64_t begin, int64_t end) {
      backward_finish_tile(pass, layer, dx, d_o, {begin, end});
    });
    const Tensor dkv = backward_attention(pass, layer, d_o, dq);
    if (is_last(layer)) backward_last_queries(pass, dq, d_last);
    for_tiles(arena, n, [&](int64_t begin, int64_t end) {
      backward_begin_tile(pass, layer, dq, dkv, d_all, {begin, end});
    });
    if (is_last(layer)) scatter_add_rows(stream, d_last, {input.rows_, {}, {}}, d_all);
    arena.rewind(layer_mark);
    if (layer_done) layer_done(layer);
  }
  scatter_add_rows(stream, d_all, input.rows_of_tokens_, gradients.embedding);
  arena.rewind(mark);
}

// finish_tile backwards: dx goes from the gradient of the layer's result to that of `residual`, and d_o is found.
void Transformer::backward_finish_tile(const Pass& pass, int layer, Tensor dx, Tensor d_o, Tile tile) {
  const Layer& l = layers_[layer];
  const LayerWeights &w = pass.weights.layers[layer], &g = pass.gradients->layers[layer];
  const int64_t rows = tile.end - tile.begin;
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor inner = pass.allocate(compute_, {rows, config_.ffn});  // its gradient, then itself
  const Tensor y = pass.allocate(compute_, {rows, config_.dim}), dy = pass.allocate(compute_, {rows, config_.dim});
  const Tensor gate_up = of_tile(l.gate_up), dx_tile = of_tile(dx), o = matrix(of_tile(l.o));

  gemm(pass.stream, dx_tile, as_is, w.down, as_is, inner);
  swiglu_backward(pass.stream, inner, gate_up, gate_up, inner);  // in place: nobody reads either again
  gemm(pass.stream, dx_tile, transposed, inner, as_is, g.down, true);
  rms_norm_apply(pass.stream, of_tile(l.middle), w.post_norm, of_tile(l.middle_rms), y);
  gemm(pass.stream, gate_up, transposed, y, as_is, g.gate_up, true);
  gemm(pass.stream, gate_up, as_is, w.gate_up, as_is, dy);
  rms_norm_backward(pass.stream, dy, of_tile(l.middle), w.post_norm, of_tile(l.middle_rms), dx_tile, g.post_norm,
                    norm_workspace(pass, rows));
  gemm(pass.stream, dx_tile, as_is, w.o, as_is, matrix(of_tile(d_o)));
  gemm(pass.stream, dx_tile, transposed, o, as_is, g.o, true);
}

Tensor Transformer::backward_attention(const Pass& pass, int layer, Tensor d_o, Tensor dq) {
  const Layer& l = layers_[layer];
  const AttentionPlan& plan = pass.input.plan_of(is_last(layer));
  const Tensor dkv = pass.allocate(compute_, {l.kv.rows(), 2 * config_.kv_heads, config_.head_dim});
  if constexpr (cuda_built)
    if (by_cudnn(layer)) {
      const CudnnSequences& sequences = pass.input.sequences_;
      cudnn_->backward(pass.stream, sequences, d_o, l.q, l.kv, l.o, l.lse, dq, dkv,
                       pass.allocate(DType::f32, {cudnn_->workspace(sequences, true)}));
      return dkv;
    }
  const Tensor workspace = pass.allocate(DType::f32, {attention_workspace(pass.stream, plan, l.q, l.kv)});
  attention_backward(pass.stream, plan, d_o, l.q, l.kv, l.o, l.lse, dq, dkv, workspace);
  return dkv;
}

// begin_tile backwards: adds to dx the gradient that comes through keys, values and (but in the last layer) queries.
void Transformer::backward_begin_tile(const Pass& pass, int layer, Tensor dq, Tensor dkv, Tensor dx, Tile tile) {
  const Layer& l = layers_[layer];
  const LayerWeights &w = pass.weights.layers[layer], &g = pass.gradients->layers[layer];
  const int64_t rows = tile.end - tile.begin;
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor y = pass.allocate(compute_, {rows, config_.dim}), dy = pass.allocate(compute_, {rows, config_.dim});
  const Tensor dkv_tile = matrix(of_tile(dkv)), positions = of_tile(pass.input.positions_);

  rms_norm_apply(pass.stream, of_tile(l.x), w.input_norm, of_tile(l.inv_rms), y);
  rope(pass.stream, dkv_tile, positions, rope_, config_.kv_heads, config_.head_dim, -1);
  gemm(pass.stream, dkv_tile, transposed, y, as_is, g.kv, true);
  gemm(pass.stream, dkv_tile, as_is, w.kv, as_is, dy);
  if (!is_last(layer)) {
    const Tensor dq_tile = matrix(of_tile(dq));
    rope(pass.stream, dq_tile, positions, rope_, config_.heads, config_.head_dim, -1);
    gemm(pass.stream, dq_tile, transposed, y, as_is, g.q, true);
    gemm(pass.stream, dq_tile, as_is, w.q, as_is, dy, true);
  }
  rms_norm_backward(pass.stream, dy, of_tile(l.x), w.input_norm, of_tile(l.inv_rms), of_tile(dx), g.input_norm,
                    norm_workspace(pass, rows));
}

// begin_last_queries backwards: adds to dx [r, dim] the gradient that comes through the queries.
void Transformer::backward_last_queries(const Pass& pass, Tensor dq, Tensor dx) {
  const Layer& l = layers_.back();
  const LayerWeights &w = pass.weights.layers.back(), &g = pass.gradients->layers.back();
  for_tiles(pass.arena, dx.rows(), [&](int64_t begin, int64_t end) {
    const Tensor y = pass.allocate(compute_, {end - begin, config_.dim}),
                 dy = pass.allocate(compute_, {end - begin, config_.dim});
    const Tensor dq_tile = matrix(dq.slice(begin, end)), residual = l.residual.slice(begin, end);
    const Tensor query_rms = l.query_rms.slice(begin, end);
    rms_norm_apply(pass.stream, residual, w.input_norm, query_rms, y);
    rope(pass.stream, dq_tile, pass.input.row_positions_.slice(begin, end), rope_, config_.heads, config_.head_dim, -1);
    gemm(pass.stream, dq_tile, transposed, y, as_is, g.q, true);
    gemm(pass.stream, dq_tile, as_is, w.q, as_is, dy);
    rms_norm_backward(pass.stream, dy, residual, w.input_norm, query_rms, dx.slice(begin, end), g.input_norm,
                      norm_workspace(pass, end - begin));
  });
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

int64_t transformer_arena_bytes(const ModelConfig& c, DType compute, Device device, int64_t tokens, int64_t hidden_rows,
                                bool keep) {
  const int64_t n = tokens, r = hidden_rows, size = size_of(compute), floats = 4;
  const auto kept = [&](int64_t rows) {  // what a layer keeps per row that goes on
    return rows * ((2 * c.q_dim() + c.dim + 2 * c.ffn) * size + (c.heads + 1) * floats);
  };
  const int64_t per_token = (c.dim + c.kv_dim()) * size + floats;
  const int64_t layers = keep ? c.layers : std::min(c.layers, 3), tile = std::min(n, tile_rows_of(device));
  int64_t bytes = layers * n * per_token + (layers - 1) * kept(n) + kept(r) + r * (3 * c.dim * size + 2 * floats);
  if (keep) {  // backward
    bytes += (n + r) * c.dim * size + n * (2 * c.q_dim() + c.kv_dim()) * size;
    bytes += (rms_norm_backward_workspace(r, c.dim) + rms_norm_backward_workspace(tile, c.dim)) * floats;
  }
  bytes += tile * (c.ffn + 3 * c.dim) * size;  // scratch of a tile
  const int64_t allocations = 16 * c.layers + 32;
  return bytes + allocations * 64;
}

}  // namespace notellm

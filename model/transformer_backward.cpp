// The transformer's backward pass: the parts of transformer.cpp in the opposite order.
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "model/transformer_pass.h"

namespace notellm {

void Transformer::backward(Stream& stream, const Weights& weights, const ModelInput& input, Tensor d_hidden,
                           const Weights& gradients, Arena& arena, const PassHooks& hooks) {
  const Pass pass{stream, weights, input, arena, hooks, &gradients};
  const int64_t n = input.tokens(), r = input.hidden_rows(), mark = arena.mark();
  NOTELLM_CHECK(static_cast<int>(layers_.size()) == config_.layers && final_x_.rows() == share_.own_count(r),
                "backward without the forward pass of the same batch");
  // Two buffers: the last layer's rows, then all tokens'; of both the rank's own.
  const Tensor d_last = arena.allocate(compute_, {share_.own_count(r), config_.dim}),
               d_all = arena.allocate(compute_, {share_.own_count(n), config_.dim});
  set_zero(stream, d_last);
  set_zero(stream, d_all);
  backward_final_norm(pass, d_hidden, d_last);
  for (int layer = config_.layers - 1; layer >= 0; --layer) {
    pass.begins(layer);
    if (recompute_ && !is_last(layer)) recompute_layer(pass, layer);
    const int64_t layer_mark = arena.mark(), rows = is_last(layer) ? r : n;
    const Tensor dx = is_last(layer) ? d_last : d_all;
    const Tensor d_o = arena.allocate(compute_, {rows, config_.heads, config_.head_dim});
    const Tensor dq = arena.allocate(compute_, {rows, config_.heads, config_.head_dim});
    for_tiles(arena, rows, [&](int64_t begin, int64_t end) {
      backward_finish_tile(pass, layer, dx, d_o, {begin, end});
    });
    const Tensor dkv = backward_attention(pass, layer, d_o, dq);
    if (is_last(layer)) backward_last_queries(pass, dq, d_last);
    for_tiles(arena, n, [&](int64_t begin, int64_t end) {
      backward_begin_tile(pass, layer, dq, dkv, d_all, {begin, end});
    });
    if (is_last(layer)) backward_last_rows(pass, d_last, d_all);
    arena.rewind(layer_mark);
    if (hooks.done) hooks.done(layer);
  }
  backward_embedding(pass, d_all);
  arena.rewind(mark);
}

void Transformer::sum_copies(Stream& stream, const LayerWeights& gradients) {
  if (tensor_.size() == 1) return;
  tensor_.all_reduce_sum(stream, "norm gradients", gradients.input_norm);
  tensor_.all_reduce_sum(stream, "norm gradients", gradients.post_norm);
  if (!kv_copies_) return;
  kv_copies_->all_reduce_sum(stream, "kv gradients", gradients.kv);
  if (config_.qkv_bias) kv_copies_->all_reduce_sum(stream, "kv gradients", gradients.kv_bias);
}

void Transformer::sum_copies(Stream& stream, const Weights& gradients) {
  if (tensor_.size() == 1) return;
  tensor_.all_reduce_sum(stream, "norm gradients", gradients.final_norm);
  // The note head, projection and tau, is the end of the last bucket.
  const Tensor bucket = gradients.buckets.back();
  const int64_t begin = gradients.note_projection.as<float>() - bucket.as<float>();
  tensor_.all_reduce_sum(stream, "note head gradients", bucket.slice(begin, bucket.rows()));
}

Tensor Transformer::norm_workspace(const Pass& pass, int64_t rows) const {
  return pass.allocate(DType::f32, {rms_norm_backward_workspace(rows, config_.dim)});
}

void Transformer::backward_final_norm(const Pass& pass, Tensor d_hidden, Tensor dx) {
  for_tiles(pass.arena, d_hidden.rows(), [&](int64_t begin, int64_t end) {
    const Rows tile{begin, end};
    const Tensor sums = d_hidden.slice(begin, end);
    share_.reduce(pass.stream, tensor_, "hidden gradients", sums);
    const Tensor dy = share_.own_part(sums);
    rms_norm_backward(pass.stream, dy, own(final_x_, tile), pass.weights.final_norm, own(final_rms_, tile),
                      own(dx, tile), pass.gradients->final_norm, norm_workspace(pass, dy.rows()));
  });
}

// finish_tile backwards: dx goes from the gradient of the layer's result to that of `residual`, and d_o is found.
void Transformer::backward_finish_tile(const Pass& pass, int layer, Tensor dx, Tensor d_o, Rows tile) {
  const Layer& l = layers_[layer];
  const LayerWeights &w = pass.weights.layers[layer], &g = pass.gradients->layers[layer];
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor inner = pass.allocate(compute_, {tile.count(), config_.ffn});  // its gradient, then itself
  const Tensor dy = pass.allocate(compute_, {tile.count(), config_.dim});
  const Tensor gate_up = of_tile(l.gate_up), dx_own = own(dx, tile), o = matrix(of_tile(l.o));
  const Tensor middle = own(l.middle, tile), middle_rms = own(l.middle_rms, tile);

  const Tensor dx_tile = all_rows(pass, "layer gradients", dx_own, tile);
  gemm(pass.stream, dx_tile, as_is, w.down, as_is, inner);
  swiglu_backward(pass.stream, inner, gate_up, gate_up, inner);  // in place: nobody reads either again
  gemm(pass.stream, dx_tile, transposed, inner, as_is, g.down, true);
  const Tensor y = gathered(pass, "normed rows", tile,
                            [&](Tensor own_y) { rms_norm_apply(pass.stream, middle, w.post_norm, middle_rms, own_y); });
  gemm(pass.stream, gate_up, transposed, y, as_is, g.gate_up, true);
  gemm(pass.stream, gate_up, as_is, w.gate_up, as_is, dy);
  share_.reduce(pass.stream, tensor_, "normed gradients", dy);
  rms_norm_backward(pass.stream, share_.own_part(dy), middle, w.post_norm, middle_rms, dx_own, g.post_norm,
                    norm_workspace(pass, dx_own.rows()));
  const Tensor dx_middle = all_rows(pass, "attention gradients", dx_own, tile);
  gemm(pass.stream, dx_middle, as_is, w.o, as_is, matrix(of_tile(d_o)));
  gemm(pass.stream, dx_middle, transposed, o, as_is, g.o, true);
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
void Transformer::backward_begin_tile(const Pass& pass, int layer, Tensor dq, Tensor dkv, Tensor dx, Rows tile) {
  const Layer& l = layers_[layer];
  const LayerWeights &w = pass.weights.layers[layer], &g = pass.gradients->layers[layer];
  const auto of_tile = [&](const Tensor& t) { return t.slice(tile.begin, tile.end); };
  const Tensor dy = pass.allocate(compute_, {tile.count(), config_.dim});
  const Tensor dkv_tile = matrix(of_tile(dkv)), positions = of_tile(pass.input.positions_);
  const Tensor x = own(l.x, tile), inv_rms = own(l.inv_rms, tile);

  const Tensor y = gathered(pass, "normed rows", tile,
                            [&](Tensor own_y) { rms_norm_apply(pass.stream, x, w.input_norm, inv_rms, own_y); });
  rope(pass.stream, dkv_tile, positions, rope_, config_.kv_heads, config_.head_dim, -1);
  backward_project(pass, dkv_tile, y, g.kv, g.kv_bias);
  gemm(pass.stream, dkv_tile, as_is, w.kv, as_is, dy);
  if (!is_last(layer)) {
    const Tensor dq_tile = matrix(of_tile(dq));
    rope(pass.stream, dq_tile, positions, rope_, config_.heads, config_.head_dim, -1);
    backward_project(pass, dq_tile, y, g.q, g.q_bias);
    gemm(pass.stream, dq_tile, as_is, w.q, as_is, dy, true);
  }
  share_.reduce(pass.stream, tensor_, "normed gradients", dy);
  rms_norm_backward(pass.stream, share_.own_part(dy), x, w.input_norm, inv_rms, own(dx, tile), g.input_norm,
                    norm_workspace(pass, x.rows()));
}

// Adds what d, the gradient of project's result, gives weight and bias.
void Transformer::backward_project(const Pass& pass, Tensor d, Tensor y, Tensor d_weight, Tensor d_bias) const {
  gemm(pass.stream, d, transposed, y, as_is, d_weight, true);
  if (d_bias.empty()) return;
  gemm(pass.stream, d, transposed, ones_.slice(0, d.rows()), as_is, d_bias.reshape({d_bias.rows(), 1}), true);
}

// begin_last_queries backwards: adds to dx, the rank's own of the hidden rows, the gradient that comes through the
// queries.
void Transformer::backward_last_queries(const Pass& pass, Tensor dq, Tensor dx) {
  const Layer& l = layers_.back();
  const LayerWeights &w = pass.weights.layers.back(), &g = pass.gradients->layers.back();
  for_tiles(pass.arena, dq.rows(), [&](int64_t begin, int64_t end) {
    const Rows tile{begin, end};
    const Tensor dq_tile = matrix(dq.slice(begin, end)), residual = own(l.residual, tile);
    const Tensor query_rms = own(l.query_rms, tile), dy = pass.allocate(compute_, {tile.count(), config_.dim});
    const Tensor y = gathered(pass, "normed rows", tile, [&](Tensor own_y) {
      rms_norm_apply(pass.stream, residual, w.input_norm, query_rms, own_y);
    });
    rope(pass.stream, dq_tile, pass.input.row_positions_.slice(begin, end), rope_, config_.heads, config_.head_dim, -1);
    backward_project(pass, dq_tile, y, g.q, g.q_bias);
    gemm(pass.stream, dq_tile, as_is, w.q, as_is, dy);
    share_.reduce(pass.stream, tensor_, "normed gradients", dy);
    rms_norm_backward(pass.stream, share_.own_part(dy), residual, w.input_norm, query_rms, own(dx, tile), g.input_norm,
                      norm_workspace(pass, residual.rows()));
  });
}

Tensor Transformer::all_tiles(const Pass& pass, const char* name, Tensor own_rows, int64_t rows) const {
  if (share_.part().count == 1) return own_rows;
  const Tensor all = pass.allocate(compute_, {rows, config_.dim});
  for_tiles(pass.arena, rows, [&](int64_t begin, int64_t end) {
    const Tensor tile = all.slice(begin, end);
    copy(pass.stream, own(own_rows, {begin, end}), share_.own_part(tile));
    share_.gather(pass.stream, tensor_, name, tile);
  });
  return all;
}

// From the hidden rows to the tokens' rows that they came from.
void Transformer::backward_last_rows(const Pass& pass, Tensor d_last, Tensor d_all) {
  const Tensor d_hidden = all_tiles(pass, "hidden gradients", d_last, pass.input.hidden_rows());
  scatter_add_rows(pass.stream, d_hidden, pass.input.hidden_rows_of_rows_, d_all);
}

void Transformer::backward_embedding(const Pass& pass, Tensor dx) {
  const Tensor d_tokens = all_tiles(pass, "embedding gradients", dx, pass.input.tokens());
  scatter_add_rows(pass.stream, d_tokens, pass.input.rows_of_tokens_, pass.gradients->embedding);
}

}  // namespace notellm

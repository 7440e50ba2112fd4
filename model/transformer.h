// The transformer over a packed batch: forward to the hidden states that something reads, and backward.
//
// One layer, with x the residual stream [n, dim]:
//     q, kv = rope(norm(x)·Wqᵀ, norm(x)·Wkvᵀ);  x' = x + attention(q, kv)·Woᵀ;  x'' = x' + swiglu(norm(x')·Wguᵀ)·Wdᵀ
// Rows are worked through in tiles that stay in the cache: all of a layer's products and memory-bound ops on one tile
// before the next tile. What the backward pass needs is kept in the arena; what it can compute again cheaply (normed
// rows, swiglu) is not kept.
//
// The last layer computes keys and values for all tokens, everything else only for the rows that are read afterwards
// (note rows and label rows): a few per cent of them.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "model/model_input.h"
#include "model/parameters.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

class Transformer {
 public:
  // compute: f32, or bf16 with softmax, norms and sums in f32. Streams, weights and arena are of this device.
  // cudnn: attention by cuDNN (kernels/attention_cudnn.h, which says what it needs), for inputs made for it; in the
  // last layer, whose queries are a subset, and which cuDNN does not have, by attention.h all the same.
  Transformer(const ModelConfig& config, DType compute, Device device = Device::cpu, bool cudnn = false);

  // Hidden states after the final norm of the input's rows: [hidden_rows, dim], in the arena. With keep, the arena
  // holds from then on what backward needs; without, only the result is left in it.
  Tensor forward(Stream& stream, const Weights& weights, const ModelInput& input, Arena& arena, bool keep);

  // Adds to `gradients` (f32) the gradient of everything that the last forward(keep) computed from; d_hidden is
  // overwritten. The arena must be as that forward left it, plus what was allocated since. layer_done(l), if given: the
  // work that adds to layer l's gradients has been enqueued; from the last layer to the first.
  using LayerDone = std::function<void(int layer)>;
  void backward(Stream& stream, const Weights& weights, const ModelInput& input, Tensor d_hidden,
                const Weights& gradients, Arena& arena, const LayerDone& layer_done = {});

  // With cudnn: f32 elements of attention's workspace for so many sequences of at most so many tokens.
  int64_t cudnn_workspace(int64_t sequences, int64_t longest);

  DType compute() const { return compute_; }
  const ModelConfig& config() const { return config_; }

 private:
  // What a layer keeps. r: rows that go on after the attention: all n, in the last layer the hidden rows.
  struct Layer {
    Tensor x, inv_rms;  // [n, dim], [n]: the residual stream and its norm
    Tensor residual,
        query_rms;         // [r, dim], [r]: x and inv_rms at the rows that go on (in all but the last layer x itself)
    Tensor q, kv, o, lse;  // [r, heads, head_dim], [n, 2·kv_heads, head_dim], as q, [r, heads]
    Tensor middle, middle_rms;  // [r, dim], [r]: the residual stream after attention, and its norm
    Tensor gate_up;             // [r, 2·ffn]
  };
  struct Tile {
    int64_t begin, end;
  };
  struct Pass;  // what every function of one pass needs: stream, weights, input, arena

  Layer allocate_layer(int layer, const ModelInput& input, Arena& arena) const;
  void begin_tile(const Pass& pass, int layer, Tensor x, Tensor delta, Tile tile);
  void begin_last_queries(const Pass& pass);
  void attend(const Pass& pass, int layer);
  Tensor finish_tile(const Pass& pass, int layer, Tile tile);

  bool by_cudnn(int layer) const { return cudnn_ && !is_last(layer); }
  Tensor norm_workspace(const Pass& pass, int64_t rows) const;
  void backward_finish_tile(const Pass& pass, int layer, Tensor dx, Tensor d_o, Tile tile);
  Tensor backward_attention(const Pass& pass, int layer, Tensor d_o, Tensor dq);
  void backward_begin_tile(const Pass& pass, int layer, Tensor dq, Tensor dkv, Tensor dx, Tile tile);
  void backward_last_queries(const Pass& pass, Tensor dq, Tensor dx);

  bool is_last(int layer) const { return layer == config_.layers - 1; }

  ModelConfig config_;
  DType compute_;
  std::optional<CudnnAttention> cudnn_;
  Buffer rope_memory_;
  Tensor rope_;  // [context, 2, head_dim/2]
  std::vector<Layer> layers_;
  Tensor final_x_, final_rms_;  // [r, dim], [r]: what goes into the final norm
};

// Bytes of arena that forward and backward use at most for a batch of `tokens` tokens and `hidden_rows` hidden rows,
// the workspace of attention aside. keep as in forward; without it there is no backward.
int64_t transformer_arena_bytes(const ModelConfig& config, DType compute, Device device, int64_t tokens,
                                int64_t hidden_rows, bool keep);

}  // namespace notellm

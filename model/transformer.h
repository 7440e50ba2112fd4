// The transformer over a packed batch: forward to the hidden states that something reads, and backward.
//
// One layer, with x the residual stream [n, dim]:
//     q, kv = rope(norm(x)·Wqᵀ + bq, norm(x)·Wkvᵀ + bkv);  x' = x + attention(q, kv)·Woᵀ;  x'' = x' +
//     swiglu(norm(x')·Wguᵀ)·Wdᵀ
// Rows are worked through in tiles that stay in the cache: all of a layer's products and memory-bound ops on one tile
// before the next tile. What the backward pass needs is kept in the arena; what it can compute again cheaply (normed
// rows, swiglu) is not kept, and with `recompute` only each layer's input is.
//
// The last layer computes keys and values for all tokens, everything else only for the rows that are read afterwards
// (note rows and label rows): a few per cent of them.
//
// On a tensor group (model/parameters.h: who holds what) each rank has its heads and its part of the feed-forward
// layer; norms and the residual stream are shared out by rows (model/row_share.h). Each layer gathers rows twice and
// reduces sums twice; backward four and two times.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "model/model_input.h"
#include "model/parameters.h"
#include "model/row_share.h"
#include "model/transformer_costs.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

// What a pass tells whoever owns the weights and gradients; each may be empty.
struct PassHooks {
  // What is enqueued from now on reads layer `layer`'s weights (and in a forward pass still those of the one before).
  std::function<void(int layer)> begins;
  // Backward: the work that adds to layer `layer`'s gradients has been enqueued.
  std::function<void(int layer)> done;
  // Forward without keep: memory for a layer's keys and values [n, 2·kv_heads, head_dim], of whoever wants to have
  // them.
  std::function<Tensor(int layer)> keys_and_values = {};
};

struct TransformerOptions {
  // Attention by cuDNN (kernels/attention_cudnn.h, which says what it needs), for inputs made for it; in the last
  // layer, whose queries are a subset, and which cuDNN does not have, by attention.h all the same.
  bool cudnn = false;
  // Keep a layer's input alone, and compute the layer again in the backward pass.
  bool recompute = false;
};

class Transformer {
 public:
  // config: of the whole model. compute: f32, or bf16 with softmax, norms and sums in f32. Streams, weights and arena
  // are of this device; weights and gradients are the rank's part. tensor: the ranks that hold the model between them;
  // null: this one alone. All of them call forward and backward with the same batch. Throws Error(usage) for sizes that
  // do not divide.
  Transformer(const ModelConfig& config, DType compute, Device device = Device::cpu, TransformerOptions options = {},
              Communicator* tensor = nullptr);

  // Hidden states after the final norm of the input's rows: [hidden_rows, dim], in the arena, on every rank of the
  // group. With keep, the arena holds from then on what backward needs; without, only the result is left in it.
  Tensor forward(Stream& stream, const Weights& weights, const ModelInput& input, Arena& arena, bool keep,
                 const PassHooks& hooks = {});

  // Adds to `gradients` (f32) the gradient of everything that the last forward(keep) computed from. d_hidden: the sum
  // over the group's ranks is the gradient of the hidden states; it is overwritten. The arena must be as that forward
  // left it, plus what was allocated since. Layers go from the last to the first. Gradients of what a group holds more
  // than once (Parameter::copies) are each rank's share of a sum: sum_copies() completes them.
  void backward(Stream& stream, const Weights& weights, const ModelInput& input, Tensor d_hidden,
                const Weights& gradients, Arena& arena, const PassHooks& hooks = {});
  // … of a layer: its norms, and keys and values of a kv head that several ranks hold. By all ranks of the group.
  void sum_copies(Stream& stream, const LayerWeights& gradients);
  // … of what is in no layer: the final norm and the note head.
  void sum_copies(Stream& stream, const Weights& gradients);

  // With cudnn: f32 elements of attention's workspace for so many sequences of at most so many tokens.
  int64_t cudnn_workspace(int64_t sequences, int64_t longest);
  // Bytes of arena that forward and backward use at most for a batch of `tokens` tokens and `hidden_rows` hidden rows,
  // the workspace of attention aside. keep as in forward; without it there is no backward.
  int64_t arena_bytes(int64_t tokens, int64_t hidden_rows, bool keep) const;

  DType compute() const { return compute_; }
  const ModelConfig& config() const { return config_; }  // the rank's part
  TensorPart part() const { return share_.part(); }
  TransformerShape shape() const { return {config_, compute_, device_, recompute_, part()}; }
  Communicator& tensor() { return tensor_; }

 private:
  // What a layer keeps. r: rows that go on after the attention: all n, in the last layer the hidden rows; n' and r' are
  // the rank's own of them.
  struct Layer {
    Tensor x, inv_rms;  // [n', dim], [n']: the residual stream and its norm
    Tensor residual,
        query_rms;         // [r', dim], [r']: x and inv_rms at the rows that go on (in all but the last layer x itself)
    Tensor q, kv, o, lse;  // [r, heads, head_dim], [n, 2·kv_heads, head_dim], as q, [r, heads]
    Tensor middle, middle_rms;  // [r', dim], [r']: the residual stream after attention, and its norm
    Tensor gate_up;             // [r, 2·ffn]
  };
  struct Pass;  // what every function of one pass needs: stream, weights, input, arena, hooks

  friend class Decoder;  // the rotary table, project(), gate()
  void allocate_layers(const ModelInput& input, Arena& arena, bool keep);
  void allocate_work(Layer& l, int64_t n, int64_t r, Arena& arena) const;
  void allocate_input(Layer& l, int64_t n, Arena& arena) const;

  // Parts of forward, in their order; `tile` counts tokens, in the last layer after attention hidden rows.
  void embed_tile(const Pass& pass, Rows tile);
  void begin_tile(const Pass& pass, int layer, Tensor x, Tensor delta, Rows tile);
  void keys_and_queries(const Pass& pass, int layer, Tensor y, Rows tile);
  void project(const Pass& pass, Tensor y, Tensor weight, Tensor bias, Tensor to) const;
  void begin_last_queries(const Pass& pass);
  void attend(const Pass& pass, int layer);
  Tensor middle_tile(const Pass& pass, int layer, Rows tile, Tensor sums);
  void gate(const Pass& pass, Tensor y, Tensor weight, Tensor gate_up, Tensor inner) const;
  Tensor finish_tile(const Pass& pass, int layer, Rows tile);
  void recompute_layer(const Pass& pass, int layer);

  // Parts of backward.
  Tensor norm_workspace(const Pass& pass, int64_t rows) const;
  void backward_final_norm(const Pass& pass, Tensor d_hidden, Tensor dx);
  void backward_finish_tile(const Pass& pass, int layer, Tensor dx, Tensor d_o, Rows tile);
  Tensor backward_attention(const Pass& pass, int layer, Tensor d_o, Tensor dq);
  void backward_begin_tile(const Pass& pass, int layer, Tensor dq, Tensor dkv, Tensor dx, Rows tile);
  void backward_project(const Pass& pass, Tensor d, Tensor y, Tensor d_weight, Tensor d_bias) const;
  void backward_last_queries(const Pass& pass, Tensor dq, Tensor dx);
  void backward_last_rows(const Pass& pass, Tensor d_last, Tensor d_all);
  void backward_embedding(const Pass& pass, Tensor dx);

  // Rows of all ranks, from the own ones that `write` puts into their place: [tile's rows, dim], in the arena.
  template <class Write>
  Tensor gathered(const Pass& pass, const char* name, Rows tile, const Write& write) const;
  // Memory for a tile of all rows whose sum's own rows shall end in `own`; with one rank `own` itself. settle() reduces
  // and brings them there.
  Tensor tile_of_sums(const Pass& pass, Tensor own, Rows tile) const;
  void settle(const Pass& pass, const char* name, Tensor sums, Tensor own) const;
  // All rows of a tile, or of all tiles, of which the rank has its own; with one rank these themselves.
  Tensor all_rows(const Pass& pass, const char* name, Tensor own_rows, Rows tile) const;
  Tensor all_tiles(const Pass& pass, const char* name, Tensor own_rows, int64_t rows) const;
  Tensor own(Tensor kept, Rows tile) const;  // the rows of a tile among those that the rank keeps

  bool by_cudnn(int layer) const { return cudnn_ && !is_last(layer); }
  bool is_last(int layer) const { return layer == config_.layers - 1; }

  ModelConfig config_;
  DType compute_;
  Device device_;
  bool recompute_;
  Communicator alone_;
  Communicator& tensor_;
  RowShare share_;
  std::optional<Communicator> kv_copies_;  // the ranks that hold the same kv head, where that is more than one
  std::optional<CudnnAttention> cudnn_;
  Buffer rope_memory_;
  Tensor rope_;  // [context, 2, head_dim/2]
  Buffer ones_memory_;
  Tensor ones_;  // [rows of a tile, 1]: with qkv_bias, whose sums over rows are products with it
  std::vector<Layer> layers_;
  Tensor final_x_, final_rms_;  // [r', dim], [r']: what goes into the final norm
};

}  // namespace notellm

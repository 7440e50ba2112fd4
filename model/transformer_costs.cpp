#include "model/transformer_costs.h"

#include <algorithm>

#include "kernels/rms_norm.h"
#include "model/row_share.h"
#include "model/tiles.h"

namespace notellm {
namespace {

constexpr int64_t floats = 4;
constexpr int64_t alignment_bytes = 64;  // of each tensor in an arena

// Bytes of arena for what transformer.cpp allocates, in the same order.
struct Sizes {
  Sizes(const TransformerShape& shape, BatchSize batch)
      : c(shape.part),
        size(size_of(shape.compute)),
        ranks(shape.tensor.count),
        n(batch.tokens),
        r(batch.hidden_rows),
        tile(tile_rows_of(shape.device)) {}

  const ModelConfig& c;
  int64_t size, ranks, n, r, tile;

  int64_t bytes(int64_t elements, int64_t tensors = 1) const { return elements * size + tensors * alignment_bytes; }
  int64_t own(int64_t rows) const { return ranks == 1 ? rows : rows / ranks + 1; }  // of whichever rank
  int64_t of_rows(int64_t rows) const { return bytes(rows * c.dim); }               // [rows, dim]
  int64_t with_rms(int64_t rows) const { return of_rows(rows) + rows * floats + alignment_bytes; }
  int64_t norm_workspace(int64_t rows) const {
    return rms_norm_backward_workspace(own(rows), c.dim) * floats + alignment_bytes;
  }
  // What a layer computes from its input.
  int64_t work(int64_t rows) const {
    return bytes(rows * (2 * c.q_dim() + 2 * c.ffn) + n * c.kv_dim(), 4) + rows * c.heads * floats + alignment_bytes +
           with_rms(own(rows));
  }
  // Backward of a layer, beyond the gradient of the residual stream.
  int64_t backward(bool last, int64_t attention) const {
    const int64_t rows = last ? r : n, t = std::min(rows, tile), all = std::min(n, tile), parts = ranks > 1;
    const int64_t finish = bytes(t * c.ffn) + (2 + 2 * parts) * of_rows(t) + norm_workspace(t);
    const int64_t begin = std::max(2 * of_rows(all) + norm_workspace(all), last ? parts * of_rows(r) : 0);
    return bytes(2 * rows * c.q_dim(), 2) + std::max(finish, bytes(n * c.kv_dim()) + attention + begin);
  }
};

int64_t tiles_of(const TransformerShape& shape, int64_t rows) {
  const int64_t tile = tile_rows_of(shape.device);
  return (rows + tile - 1) / tile;
}

// Rows of the residual stream that a tensor group gathers or reduces, all tiles of them.
class RowTraffic {
 public:
  RowTraffic(const TransformerShape& shape, Traffic& tensor)
      : shape_(shape), share_(shape.tensor, shape.device), tensor_(tensor) {}
  void gather(const char* name, int64_t rows) {
    tensor_.gather(name, bytes(share_.own_count(rows)), tiles_of(shape_, rows));
  }
  void reduce(const char* name, int64_t rows) {
    tensor_.reduce_scatter(name, bytes(rows), bytes(share_.own_count(rows)), tiles_of(shape_, rows));
  }

 private:
  int64_t bytes(int64_t rows) const { return rows * shape_.part.dim * size_of(shape_.compute); }
  const TransformerShape& shape_;
  RowShare share_;
  Traffic& tensor_;
};

}  // namespace

TransformerMemory transformer_memory(const TransformerShape& shape, BatchSize batch, bool keep,
                                     int64_t attention_floats) {
  const Sizes s(shape, batch);
  const int64_t layers = s.c.layers, n = s.n, r = s.r;
  const int64_t kept_layers = keep && !shape.recompute ? layers - 1 : std::min<int64_t>(1, layers - 1);
  const int64_t state = kept_layers * s.work(n) + s.work(r) + (keep ? layers : 1) * s.with_rms(s.own(n)) +
                        2 * s.with_rms(s.own(r));  // residual of the last layer, and what goes into the final norm
  const int64_t attention = attention_floats * floats + alignment_bytes, tile = std::min(n, s.tile);
  const int64_t in_tile = s.bytes(tile * s.c.ffn) + 3 * s.of_rows(tile);
  TransformerMemory memory;
  memory.kept = s.of_rows(r) + (keep ? state : 0);
  memory.forward = (keep ? 0 : state) + std::max(in_tile, attention);
  if (!keep) return memory;
  const int64_t last = s.backward(true, attention), others = layers > 1 ? s.backward(false, attention) : 0;
  const int64_t again = shape.recompute ? std::max(2 * s.of_rows(tile), attention) : 0;
  const int64_t embedding = s.ranks > 1 ? s.of_rows(n) : 0;
  memory.backward = s.of_rows(s.own(n)) + s.of_rows(s.own(r)) + std::max({last, others, again, embedding});
  return memory;
}

void add_forward(const TransformerShape& shape, BatchSize size, Traffic& tensor) {
  const int64_t n = size.tokens, r = size.hidden_rows;
  RowTraffic rows(shape, tensor);
  rows.reduce("embedded rows", n);
  for (int layer = 0; layer < shape.part.layers; ++layer) {
    const bool last = layer + 1 == shape.part.layers;
    const int64_t on = last ? r : n;  // rows that go on after the attention
    rows.gather("normed rows", n);
    if (last) {
      rows.reduce("hidden rows", r);
      rows.gather("normed rows", r);
    }
    rows.reduce("attention outputs", on);
    rows.gather("normed rows", on);
    rows.reduce("layer outputs", on);
  }
  rows.gather("hidden rows", r);
}

void add_backward(const TransformerShape& shape, BatchSize size, Traffic& tensor) {
  const int64_t n = size.tokens, r = size.hidden_rows;
  RowTraffic rows(shape, tensor);
  rows.reduce("hidden gradients", r);
  for (int layer = shape.part.layers - 1; layer >= 0; --layer) {
    const bool last = layer + 1 == shape.part.layers;
    const int64_t on = last ? r : n;
    if (shape.recompute && !last) {
      rows.gather("normed rows", n);
      rows.reduce("attention outputs", n);
      rows.gather("normed rows", n);
    }
    rows.gather("layer gradients", on);
    rows.gather("normed rows", on);
    rows.reduce("normed gradients", on);
    rows.gather("attention gradients", on);
    if (last) {
      rows.gather("normed rows", r);
      rows.reduce("normed gradients", r);
    }
    rows.gather("normed rows", n);
    rows.reduce("normed gradients", n);
    if (last) rows.gather("hidden gradients", r);
  }
  rows.gather("embedding gradients", n);
}

TensorPart kv_copies_of(const ModelConfig& config, TensorPart tensor) {
  const int copies = tensor.count / std::min(config.kv_heads, tensor.count);
  return {tensor.index % copies, copies};
}

void add_sums_of_copies(const ParameterLayout& layout, Traffic& tensor, Traffic& kv_copies) {
  const ModelConfig& c = layout.part_config();
  for (int layer = 0; layer < c.layers; ++layer) {
    for (int norm = 0; norm < 2; ++norm) tensor.all_reduce("norm gradients", c.dim, floats);
    kv_copies.all_reduce("kv gradients", int64_t{c.kv_dim()} * c.dim, floats);
    if (c.qkv_bias) kv_copies.all_reduce("kv gradients", c.kv_dim(), floats);
  }
  tensor.all_reduce("norm gradients", c.dim, floats);
  tensor.all_reduce("note head gradients", layout.size() - layout.at("note_head.weight").offset, floats);
}

}  // namespace notellm

// The model's parameters: one flat array, in which every matrix has its place, and views of it.
//
// Order: embedding; for each layer input norm, q, k, v, their biases (qkv_bias), o, post-attention norm, gate, up,
// down; final norm; head (untied); note projection; tau. q, k, v stand together, and gate, up, so that one product
// serves them; a Hugging Face tensor is a run of rows of such a block.
//
// With tensor parallelism the array holds one rank's part of the model (Megatron-LM, arXiv 1909.08053):
//     by rows (outputs):    q, k, v and their biases by heads; gate, up; embedding and head by tokens
//     by columns (inputs):  o by heads; down
//     whole, on each rank:  norms, note projection, tau; and k, v of one kv head where there are fewer heads than ranks
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

enum class ParameterKind : uint8_t { embedding, matrix, bias, norm, temperature };

struct Parameter {
  std::string name;  // of Hugging Face, or note_head.weight, note_head.tau
  ParameterKind kind;
  int64_t rows, cols;  // cols 0: a vector of `rows`
  int64_t offset;      // in the flat array
  // The whole matrix, and where this part begins in it.
  int64_t all_rows, all_cols, row_begin, col_begin;
  int copies;  // how many ranks of a tensor group hold this part

  int64_t size() const { return rows * (cols ? cols : 1); }
  Tensor view(Tensor flat) const;
};

// Elements [first, first + count) of the part, row by row, or in one go where the part has whole rows:
// take(element of the whole matrix, element counted from `first`, how many).
void for_row_runs(const Parameter& p, int64_t first, int64_t count,
                  const std::function<void(int64_t whole, int64_t at, int64_t elements)>& take);

// The rank of a tensor group, and how many there are.
struct TensorPart {
  int index = 0, count = 1;
};
// One rank's sizes: heads, kv_heads and ffn of its part. Throws Error(usage) naming the key of what does not divide,
// and sizes that do.
ModelConfig config_of_part(const ModelConfig& config, int tensor_ranks);

// Elements [begin, end) of the flat array.
struct FlatRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

class ParameterLayout {
 public:
  // vocabulary: rows of the whole embedding, padding included. shards: each bucket's size is a multiple of 16 · shards
  // elements, so that it can be cut into as many equal, aligned shards. Throws as config_of_part does.
  ParameterLayout(const ModelConfig& config, int64_t vocabulary, TensorPart part = {}, int shards = 1);

  const std::vector<Parameter>& all() const { return all_; }
  int64_t size() const { return size_; }  // elements of the flat array; each parameter starts at a multiple of 16
  // What is gathered, or summed over data ranks, together: the embedding; each layer; the rest. One after the other
  // they are the whole array.
  const std::vector<FlatRange>& buckets() const { return buckets_; }
  int64_t vocabulary() const { return vocabulary_; }  // of all parts
  const ModelConfig& part_config() const { return part_config_; }
  TensorPart part() const { return part_; }
  const Parameter& at(const std::string& name) const;

 private:
  enum class Split { rows, columns, none };
  void add(std::string name, ParameterKind kind, int64_t rows, int64_t cols, Split split = Split::none);
  void end_bucket(int shards);
  std::vector<Parameter> all_;
  std::vector<FlatRange> buckets_;
  int64_t size_ = 0;
  int64_t vocabulary_;
  TensorPart part_;
  ModelConfig part_config_;
};

struct LayerWeights {
  Tensor input_norm;       // [dim]
  Tensor q;                // [heads·head_dim, dim]; all sizes are those of the rank's part
  Tensor kv;               // [2·kv_heads·head_dim, dim]  k rows, then v rows
  Tensor q_bias, kv_bias;  // [heads·head_dim], [2·kv_heads·head_dim]; empty without qkv_bias
  Tensor o;                // [dim, heads·head_dim]
  Tensor post_norm;        // [dim]
  Tensor gate_up;          // [2·ffn, dim]  gate rows, then up rows
  Tensor down;             // [dim, ffn]
};

// Views into a flat array of weights, of gradients or of moments.
struct Weights {
  Weights(const ParameterLayout& layout, Tensor flat);
  // Each bucket in memory of its own; memory may serve several of them, one after the other.
  Weights(const ParameterLayout& layout, std::span<const Tensor> buckets);
  std::vector<Tensor> buckets;  // as the layout's
  Tensor embedding;             // [vocabulary, dim]
  std::vector<LayerWeights> layers;
  Tensor final_norm;       // [dim]
  Tensor head;             // [vocabulary, dim]; the embedding when tied
  Tensor note_projection;  // [note_dim, dim]
  Tensor tau;              // [1]
};

// Rows of the embedding for `tokens` tokens in use: a multiple of 64, which matrix products like.
int64_t padded_vocabulary(int64_t tokens);

// Calls take(p, values) with the initial values of each parameter of the part, f32 in host memory that lasts until take
// returns: a pure function of (seed, parameter, element of the whole matrix). Rows of the embedding from tokens_in_use
// on are zero; row `mean_row` (the [EMB] token) is the mean of the rows before it, as new special tokens start.
void initialize(const ParameterLayout& layout, const InitConfig& config, uint64_t seed, int64_t tokens_in_use,
                int64_t mean_row, const std::function<void(const Parameter&, Tensor)>& take);

// … of the note head alone.
void initialize_note_head(const ParameterLayout& layout, const InitConfig& config, uint64_t seed,
                          const std::function<void(const Parameter&, Tensor)>& take);

}  // namespace notellm

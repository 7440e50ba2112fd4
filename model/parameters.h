// The model's parameters: one flat array, in which every matrix has its place, and views of it.
//
// Order: embedding; for each layer input norm, q, k, v, o, post-attention norm, gate, up, down; final norm; head
// (untied); note projection; tau. q, k, v stand together, and gate, up, so that one product serves them; a Hugging Face
// tensor is a run of rows of such a block.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

enum class ParameterKind : uint8_t { embedding, matrix, norm, temperature };

struct Parameter {
  std::string name;  // of Hugging Face, or note_head.weight, note_head.tau
  ParameterKind kind;
  int64_t rows, cols;  // cols 0: a vector of `rows`
  int64_t offset;      // in the flat array

  int64_t size() const { return rows * (cols ? cols : 1); }
  Tensor view(Tensor flat) const;
};

class ParameterLayout {
 public:
  // vocabulary: rows of the embedding, padding included.
  ParameterLayout(const ModelConfig& config, int64_t vocabulary);

  const std::vector<Parameter>& all() const { return all_; }
  int64_t size() const { return size_; }  // elements of the flat array; each parameter starts at a multiple of 16
  int64_t vocabulary() const { return vocabulary_; }
  const Parameter& at(const std::string& name) const;

 private:
  void add(std::string name, ParameterKind kind, int64_t rows, int64_t cols);
  std::vector<Parameter> all_;
  int64_t size_ = 0;
  int64_t vocabulary_;
};

struct LayerWeights {
  Tensor input_norm;  // [dim]
  Tensor q;           // [heads·head_dim, dim]
  Tensor kv;          // [2·kv_heads·head_dim, dim]  k rows, then v rows
  Tensor o;           // [dim, heads·head_dim]
  Tensor post_norm;   // [dim]
  Tensor gate_up;     // [2·ffn, dim]  gate rows, then up rows
  Tensor down;        // [dim, ffn]
};

// Views into a flat array of weights, of gradients or of moments.
struct Weights {
  Weights(const ParameterLayout& layout, const ModelConfig& config, Tensor flat);
  Tensor flat;       // all of it
  Tensor embedding;  // [vocabulary, dim]
  std::vector<LayerWeights> layers;
  Tensor final_norm;       // [dim]
  Tensor head;             // [vocabulary, dim]; the embedding when tied
  Tensor note_projection;  // [note_dim, dim]
  Tensor tau;              // [1]
};

// Rows of the embedding for `tokens` tokens in use: a multiple of 64, which matrix products like.
int64_t padded_vocabulary(int64_t tokens);

// Fills the flat f32 array, memory of the stream's device, with initial values: a pure function of (seed, parameter,
// element). Rows of the embedding from tokens_in_use on are zero; row `mean_row` (the [EMB] token) is the mean of the
// rows before it, as new special tokens start. What lies between parameters stays as it is.
void initialize(Stream& stream, const ParameterLayout& layout, const ModelConfig& config, uint64_t seed,
                int64_t tokens_in_use, int64_t mean_row, Tensor flat);

}  // namespace notellm

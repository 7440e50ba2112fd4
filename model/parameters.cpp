#include "model/parameters.h"

#include <algorithm>

namespace notellm {
namespace {
constexpr int64_t vocabulary_multiple = 64;
constexpr int64_t alignment_elements = 16;  // 64 bytes of f32

std::string layer_name(int layer, const char* rest) { return fmt::format("model.layers.{}.{}.weight", layer, rest); }

Tensor block(Tensor flat, const Parameter& first, int64_t rows, int64_t cols) {
  return flat.slice(first.offset, first.offset + rows * cols).reshape({rows, cols});
}
}  // namespace

Tensor Parameter::view(Tensor flat) const {
  const Tensor part = flat.slice(offset, offset + size());
  return cols ? part.reshape({rows, cols}) : part;
}

ParameterLayout::ParameterLayout(const ModelConfig& c, int64_t vocabulary) : vocabulary_(vocabulary) {
  using enum ParameterKind;
  add("model.embed_tokens.weight", embedding, vocabulary, c.dim);
  const int64_t kv_rows = static_cast<int64_t>(c.kv_heads) * c.head_dim;
  for (int l = 0; l < c.layers; ++l) {
    add(layer_name(l, "input_layernorm"), norm, c.dim, 0);
    add(layer_name(l, "self_attn.q_proj"), matrix, c.q_dim(), c.dim);
    add(layer_name(l, "self_attn.k_proj"), matrix, kv_rows, c.dim);
    add(layer_name(l, "self_attn.v_proj"), matrix, kv_rows, c.dim);
    add(layer_name(l, "self_attn.o_proj"), matrix, c.dim, c.q_dim());
    add(layer_name(l, "post_attention_layernorm"), norm, c.dim, 0);
    add(layer_name(l, "mlp.gate_proj"), matrix, c.ffn, c.dim);
    add(layer_name(l, "mlp.up_proj"), matrix, c.ffn, c.dim);
    add(layer_name(l, "mlp.down_proj"), matrix, c.dim, c.ffn);
  }
  add("model.norm.weight", norm, c.dim, 0);
  if (!c.tied_head) add("lm_head.weight", embedding, vocabulary, c.dim);
  add("note_head.weight", matrix, c.note_dim, c.dim);
  add("note_head.tau", temperature, 1, 0);
}

void ParameterLayout::add(std::string name, ParameterKind kind, int64_t rows, int64_t cols) {
  // The halves of a block (k after q, v after k, up after gate) must touch: their sizes are aligned only as blocks.
  const bool continues = name.ends_with("v_proj.weight") || name.ends_with("up_proj.weight");
  if (!continues) size_ = (size_ + alignment_elements - 1) / alignment_elements * alignment_elements;
  all_.push_back({std::move(name), kind, rows, cols, size_});
  size_ += all_.back().size();
}

const Parameter& ParameterLayout::at(const std::string& name) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const Parameter& p) { return p.name == name; });
  NOTELLM_CHECK(found != all_.end(), "no parameter {}", name);
  return *found;
}

Weights::Weights(const ParameterLayout& layout, const ModelConfig& c, Tensor flat) : flat(flat) {
  const auto part = [&](const std::string& name) { return layout.at(name).view(flat); };
  embedding = part("model.embed_tokens.weight");
  for (int l = 0; l < c.layers; ++l) {
    layers.push_back({
        .input_norm = part(layer_name(l, "input_layernorm")),
        .q = part(layer_name(l, "self_attn.q_proj")),
        .kv = block(flat, layout.at(layer_name(l, "self_attn.k_proj")), c.kv_dim(), c.dim),
        .o = part(layer_name(l, "self_attn.o_proj")),
        .post_norm = part(layer_name(l, "post_attention_layernorm")),
        .gate_up = block(flat, layout.at(layer_name(l, "mlp.gate_proj")), 2 * c.ffn, c.dim),
        .down = part(layer_name(l, "mlp.down_proj")),
    });
  }
  final_norm = part("model.norm.weight");
  head = c.tied_head ? embedding : part("lm_head.weight");
  note_projection = part("note_head.weight");
  tau = part("note_head.tau");
}

int64_t padded_vocabulary(int64_t tokens) {
  return (tokens + vocabulary_multiple - 1) / vocabulary_multiple * vocabulary_multiple;
}

}  // namespace notellm

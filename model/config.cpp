#include "model/config.h"

#include <algorithm>
#include <numbers>

#include "kernels/rope.h"

namespace notellm {

void InitConfig::fields(Fields& f) {
  f.add("embedding_std", "standard deviation of the token embeddings", embedding_std, at_least(0));
  f.add("matrix_std", "standard deviation of the other matrices", matrix_std, at_least(0));
  f.add("first_attention", "first layer's attention: random, or average of all earlier tokens", first_attention,
        {{"random", FirstAttention::random}, {"average", FirstAttention::average}});
  f.add("tau", "initial temperature: e^tau multiplies the cosine", tau, between(-5, 5));
}

void RopeScalingConfig::fields(Fields& f) {
  f.add("type", "beyond the context of the first training: none, or as in Llama 3", type,
        {{"none", RopeScaling::none}, {"llama3", RopeScaling::llama3}});
  f.add("factor", "llama3: divides low frequencies", factor, at_least(1));
  f.add("low_frequency_factor", "llama3: low are those of fewer turns in original_context", low_frequency_factor,
        at_least(0));
  f.add("high_frequency_factor", "llama3: high, and kept, are those of more turns in original_context",
        high_frequency_factor, at_least(0));
  f.add("original_context", "llama3: context of the first training", original_context, between(1, 1 << 30));
}

void ModelConfig::fields(Fields& f) {
  f.add("from", "begin with the weights of this checkpoint or run, and take its sizes; empty: initial values", from);
  f.add("dim", "hidden size", dim, between(2, 65536));
  f.add("layers", "transformer layers", layers, between(1, 1024));
  f.add("heads", "attention heads", heads, between(1, 1024));
  f.add("kv_heads", "key and value heads (fewer than heads: grouped queries)", kv_heads, between(1, 1024));
  f.add("head_dim", "size of a head, 0: dim / heads", head_dim, between(0, 1024));
  f.add("ffn", "inner size of the SwiGLU block", ffn, between(1, 1 << 20));
  f.add("note_dim", "size of a note vector", note_dim, between(1, 65536));
  f.add("context", "most tokens of a note's sequence", context, between(8, 1 << 20));
  f.add("tied_head", "the LM head is the embedding matrix", tied_head);
  f.add("qkv_bias", "queries, keys and values have biases (Qwen2)", qkv_bias);
  f.add("rope_theta", "base of the rotary embedding", rope_theta, at_least(1));
  f.section("rope_scaling", rope_scaling);
  f.add("norm_eps", "epsilon of RMSNorm", norm_eps, between(1e-12, 1));
  f.add("export_type", "type of the weights that 'notellm export' writes; 'import' sets it to what it read",
        export_type, {{"f32", ExportType::f32}, {"bf16", ExportType::bf16}, {"f16", ExportType::f16}});
  f.section("init", init);
}

void ModelConfig::finish() {
  if (head_dim == 0) {
    if (dim % heads != 0)
      fail(ErrorKind::usage,
           "model.dim {} does not divide by model.heads {}; nearest dims that do: {} and {} (or set model.head_dim)",
           dim, heads, dim / heads * heads, (dim / heads + 1) * heads);
    head_dim = dim / heads;
  }
  if (head_dim % 2 != 0)
    fail(ErrorKind::usage, "model.head_dim {} is odd; rotary embedding needs an even one", head_dim);
  if (heads % kv_heads != 0)
    fail(ErrorKind::usage, "model.heads {} is not a multiple of model.kv_heads {}", heads, kv_heads);
  if (rope_scaling.type == RopeScaling::llama3 &&
      rope_scaling.low_frequency_factor >= rope_scaling.high_frequency_factor)
    fail(ErrorKind::usage,
         "model.rope_scaling.low_frequency_factor {} must be less than model.rope_scaling.high_frequency_factor {}",
         rope_scaling.low_frequency_factor, rope_scaling.high_frequency_factor);
  if (init.first_attention == FirstAttention::average && (kv_heads != heads || q_dim() != dim))
    fail(ErrorKind::usage,
         "model.init.first_attention: average needs kv_heads = heads and heads · head_dim = dim; here {} heads of {}, "
         "{} "
         "kv_heads, dim {}",
         heads, head_dim, kv_heads, dim);
}

std::vector<double> rope_frequencies(const ModelConfig& config) {
  std::vector<double> frequencies = rope_frequencies(config.rope_theta, config.head_dim);
  const RopeScalingConfig& s = config.rope_scaling;
  if (s.type == RopeScaling::none) return frequencies;
  for (double& frequency : frequencies) {
    const double turns = s.original_context * frequency / (2 * std::numbers::pi);
    const double kept =
        std::clamp((turns - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor), 0.0, 1.0);
    frequency *= kept + (1 - kept) / s.factor;
  }
  return frequencies;
}

}  // namespace notellm

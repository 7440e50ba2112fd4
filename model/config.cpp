#include "model/config.h"

namespace notellm {

void InitConfig::fields(Fields& f) {
  f.add("embedding_std", "standard deviation of the token embeddings", embedding_std, at_least(0));
  f.add("matrix_std", "standard deviation of the other matrices", matrix_std, at_least(0));
  f.add("first_attention", "first layer's attention: random, or average of all earlier tokens", first_attention,
        {{"random", FirstAttention::random}, {"average", FirstAttention::average}});
  f.add("tau", "initial temperature: e^tau multiplies the cosine", tau, between(-5, 5));
}

void ModelConfig::fields(Fields& f) {
  f.add("dim", "hidden size", dim, between(2, 65536));
  f.add("layers", "transformer layers", layers, between(1, 1024));
  f.add("heads", "attention heads", heads, between(1, 1024));
  f.add("kv_heads", "key and value heads (fewer than heads: grouped queries)", kv_heads, between(1, 1024));
  f.add("head_dim", "size of a head, 0: dim / heads", head_dim, between(0, 1024));
  f.add("ffn", "inner size of the SwiGLU block", ffn, between(1, 1 << 20));
  f.add("note_dim", "size of a note vector", note_dim, between(1, 65536));
  f.add("context", "most tokens of a note's sequence", context, between(8, 1 << 20));
  f.add("tied_head", "the LM head is the embedding matrix", tied_head);
  f.add("rope_theta", "base of the rotary embedding", rope_theta, at_least(1));
  f.add("norm_eps", "epsilon of RMSNorm", norm_eps, between(1e-12, 1));
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
  if (init.first_attention == FirstAttention::average && (kv_heads != heads || q_dim() != dim))
    fail(ErrorKind::usage,
         "model.init.first_attention: average needs kv_heads = heads and heads · head_dim = dim; here {} heads of {}, "
         "{} "
         "kv_heads, dim {}",
         heads, head_dim, kv_heads, dim);
}

}  // namespace notellm

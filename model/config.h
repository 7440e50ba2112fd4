// Shape and initial values of the model: the LLaMA architecture (RMSNorm, RoPE, grouped queries, SwiGLU) and the note
// vector head of NoteLLM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config.h"
#include "runtime/dtype.h"

namespace notellm {

enum class FirstAttention { random, average };

// Initial values. Matrices and embeddings are normal with the given standard deviations, norms are 1.
struct InitConfig {
  double embedding_std = 0.02;
  double matrix_std = 0.02;
  // average: the first layer's attention starts as the mean of all earlier tokens: q and k rows × 0.1, v and o the
  // identity (needs heads = kv_heads and heads · head_dim = dim). Learns several times faster from scratch, because the
  // note vector is a bag of words from the first step on.
  FirstAttention first_attention = FirstAttention::random;
  double tau = 3.0;  // e^tau multiplies the cosine

  void fields(Fields& f);
};

enum class RopeScaling { none, llama3 };

// How the rotary embedding goes on beyond the context that a model was first trained for.
struct RopeScalingConfig {
  RopeScaling type = RopeScaling::none;
  // Of llama3: frequencies of fewer than low_frequency_factor turns in original_context positions are divided by
  // factor, those of more than high_frequency_factor are kept, those between are mixed of both.
  double factor = 8;
  double low_frequency_factor = 1, high_frequency_factor = 4;
  int original_context = 8192;

  void fields(Fields& f);
};

// The weights' type in files that 'notellm export' writes.
enum class ExportType { f32, bf16, f16 };

struct ModelConfig {
  std::string from;  // a checkpoint, or a run, whose weights training begins with; empty: initial values
  int dim = 192;
  int layers = 2;
  int heads = 6;
  int kv_heads = 6;
  int head_dim = 0;  // 0: dim / heads
  int ffn = 512;
  int note_dim = 128;
  int context = 512;  // positions
  bool tied_head = true;
  bool qkv_bias = false;  // q, k and v have biases, as in Qwen2
  double rope_theta = 10000;
  RopeScalingConfig rope_scaling;
  double norm_eps = 1e-5;
  ExportType export_type = ExportType::f32;
  InitConfig init;

  void fields(Fields& f);
  // Fills in what is derived; throws Error(usage) naming the key when sizes do not fit each other.
  void finish();

  int q_dim() const { return heads * head_dim; }
  int kv_dim() const { return 2 * kv_heads * head_dim; }
};

// [head_dim/2] of the rotary embedding, scaled.
std::vector<double> rope_frequencies(const ModelConfig& config);

}  // namespace notellm

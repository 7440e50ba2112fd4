#include "training/hugging_face.h"

#include <nlohmann/json.hpp>

namespace notellm {

std::string hugging_face_config(const ModelConfig& c, int64_t vocabulary, const PromptTokens& prompt) {
  const nlohmann::ordered_json json = {
      {"architectures", {"LlamaForCausalLM"}},
      {"model_type", "llama"},
      {"hidden_size", c.dim},
      {"num_hidden_layers", c.layers},
      {"num_attention_heads", c.heads},
      {"num_key_value_heads", c.kv_heads},
      {"head_dim", c.head_dim},
      {"intermediate_size", c.ffn},
      {"vocab_size", vocabulary},
      {"max_position_embeddings", c.context},
      {"rms_norm_eps", c.norm_eps},
      {"rope_theta", c.rope_theta},
      {"rope_parameters", {{"rope_theta", c.rope_theta}, {"rope_type", "default"}}},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"tie_word_embeddings", c.tied_head},
      {"bos_token_id", prompt.category_instruction.empty() ? 1 : prompt.category_instruction.front()},
      {"eos_token_id", prompt.eos},
      {"dtype", "float32"}};
  return json.dump(2) + "\n";
}

}  // namespace notellm

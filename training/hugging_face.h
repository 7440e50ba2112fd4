// config.json of Hugging Face: read for import, written for tools that read the model of a checkpoint or of an export.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "model/config.h"

namespace notellm {

inline constexpr const char* hugging_face_config_name = "config.json";

// LlamaForCausalLM, or with qkv_bias Qwen2ForCausalLM. vocabulary: rows of the embedding. type: of the weights beside
// it.
std::string hugging_face_config(const ModelConfig& config, int64_t vocabulary, std::optional<int32_t> bos, int32_t eos,
                                ExportType type);

struct HuggingFaceModel {
  ModelConfig config;  // with the default note_dim, init and export_type, which the file does not have
  int64_t vocabulary;  // rows of the embedding
};

// Of a folder's config.json, as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) writes it:
// LlamaForCausalLM; MistralForCausalLM, whose sliding_window (4,096 where it is missing) must be null or not shorter
// than the context; Qwen2ForCausalLM without sliding window. All keys must be known: one that is not might change what
// the model computes. Throws Error(io): no such file; Error(checkpoint), naming the file, the key and what is
// supported: an architecture or a value that is not, a key that is missing, unknown or contradicts another, sizes that
// do not fit each other; values nested more than 64 deep.
HuggingFaceModel read_hugging_face_config(const std::filesystem::path& folder);

}  // namespace notellm

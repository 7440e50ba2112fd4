// config.json of Hugging Face (LlamaForCausalLM), for tools that read the model of a checkpoint.
#pragma once

#include <string>

#include "data_pipeline/note_table.h"
#include "model/config.h"

namespace notellm {

std::string hugging_face_config(const ModelConfig& config, int64_t vocabulary, const PromptTokens& prompt);

}  // namespace notellm

// A checkpoint as a model of the Hugging Face hub, which is also one of sentence-transformers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "model/config.h"

namespace notellm {

struct ExportOptions {
  std::optional<ExportType> type = {};  // none: model.export_type
  int64_t file_bytes = 5'000'000'000;   // a file is ended before the tensor that would make its data larger
  std::filesystem::path report = {};    // of 'notellm evaluate --json'; empty: none
};

// Writes the model of a checkpoint, or of a run's newest, to `destination`, until it is whole to DESTINATION.partial:
// neither may be there.
//
//   model.safetensors              or model-0000K-of-0000N.safetensors with model.safetensors.index.json: the tokens in
//                                  use of embedding and head, [EMB] the last one, without padding
//   config.json, generation_config.json, README.md
//   tokenizer.model, tokenizer_config.json
//   modules.json, sentence_bert_config.json, config_sentence_transformers.json, 1_Pooling, 2_Dense, 3_Normalize
//
// An imported model comes out with the bits that went in. Throws Error: io (no checkpoint, a folder that is there, a
// full disk); checkpoint (damaged; a weight that is NaN, infinite, or beyond f16).
void export_model(const std::filesystem::path& checkpoint, const std::filesystem::path& destination,
                  const ExportOptions& options);

}  // namespace notellm

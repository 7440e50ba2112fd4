// The small files of an export: what tells transformers and sentence-transformers, and people, how to use it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data_pipeline/tokenizer.h"
#include "training/checkpoint.h"

namespace notellm {

std::string generation_config(const Tokenizer& tokenizer);
// The tokenizer's files for transformers, with [EMB] as an added token: a SentencePiece model as LlamaTokenizer takes
// it; a tokenizer.json and tokenizer_config.json as they were, but for [EMB], a token for padding, the context, and
// tokens that a template puts behind texts, which are taken off: a note's vector is that of its last token.
TokenizerFiles exported_tokenizer(const Tokenizer& tokenizer, int context);

// Name and content of the modules' descriptions: transformer, last token, projection without bias, length 1. A text is
// a prompt up to before [EMB]; its vector is that of 'notellm embed'.
std::vector<std::pair<std::string, std::string>> sentence_transformers_files(const ModelConfig& config);

// What the run of a checkpoint has measured, as a table in Markdown: of a report ('notellm evaluate --json'), or, where
// `report` is empty, of the newest evaluation on the way up to the checkpoint's step (metrics.jsonl of its run). Empty:
// nothing. Throws Error(io): no such report; Error(data): not a report.
std::string measured_recall(const std::filesystem::path& checkpoint, const std::filesystem::path& report);
// README.md.
std::string model_card(const CheckpointInfo& checkpoint, const std::string& measured);

}  // namespace notellm

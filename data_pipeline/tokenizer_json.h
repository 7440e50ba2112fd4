// Reads a Hugging Face tokenizer.json, strictly: every key, type and option that is not known here is an error.
// docs/data_formats.md has what is supported.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data_pipeline/added_tokens.h"
#include "data_pipeline/bpe.h"
#include "data_pipeline/normalizer.h"
#include "data_pipeline/pre_tokenizer.h"
#include "data_pipeline/token_decoder.h"

namespace notellm {

struct TokenizerSpec {
  BpeSpec bpe;
  std::vector<AddedToken> added;  // by id
  std::vector<NormalizerStep> normalizer;
  PreTokenizerSpec pre_tokenizer;
  std::vector<DecoderStep> decoder;
  std::optional<int32_t> bos;  // what the post-processor puts before a text
  int32_t eos = 0;
  int32_t size = 0;  // ids are 0 … size − 1, all in use
};

// json, config: the bytes of tokenizer.json and of tokenizer_config.json, which says which token ends a text
// (eos_token). `name` and `config_name` stand for them in messages.
// Throws Error(data) naming file, JSON path, value and what is supported:
//   not JSON; a key twice; a key, type or option that is not known; a model that is not BPE
//   ids that are not 0, 1, 2, …; added tokens that the `tokenizers` library would give another id
//   a merge of or to a piece that is not there, a merge twice, a merge that gives a special token
//   characters that would give no token: a byte-level vocabulary or byte fallback without all bytes, no unknown token
//   no EOS, or one that is no special token; more than one token before a text, another one than EOS after it
//   a tokenizer_config.json that disagrees about BOS (add_bos_token, bos_token)
TokenizerSpec read_tokenizer_json(const std::string& json, const std::string& name, const std::string& config,
                                  const std::string& config_name);

}  // namespace notellm

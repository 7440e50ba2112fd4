#include "data_pipeline/tokenizer.h"

#include <sentencepiece_trainer.h>

#include <algorithm>

#include "data_pipeline/json_tokenizer.h"
#include "data_pipeline/sentencepiece_tokenizer.h"
#include "runtime/error.h"
#include "runtime/files.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr const char *model_name = tokenizer_file_names[0], *json_name = tokenizer_file_names[1],
                     *config_name = tokenizer_file_names[2];

// Hands a list of texts to the trainer.
class TextIterator : public sentencepiece::SentenceIterator {
 public:
  explicit TextIterator(const std::vector<std::string>& texts) : texts_(texts) {}
  bool done() const override { return next_ == texts_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return texts_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& texts_;
  size_t next_ = 0;
};

}  // namespace

void TokenizerConfig::fields(Fields& f) {
  f.add("model", "SentencePiece model file or Hugging Face tokenizer.json; empty: train one on the notes", model);
  f.add("vocabulary", "pieces of a trained model, special tokens and 256 bytes included", vocabulary,
        between(300, 1 << 20));
  f.add("training_texts", "at most that many texts of the notes are trained on", training_texts, at_least(1));
}

std::vector<fs::path> tokenizer_inputs(const fs::path& path) {
  if (path.extension() != ".json") return {path};
  return {path, path.parent_path() / config_name};
}

TokenizerFiles read_tokenizer_files(const fs::path& folder) {
  if (fs::exists(folder / json_name))
    return {{json_name, read_file(folder / json_name)}, {config_name, read_file(folder / config_name)}};
  return {{model_name, read_file(folder / model_name)}};
}

Tokenizer Tokenizer::load(const fs::path& path) {
  const std::vector<fs::path> inputs = tokenizer_inputs(path);
  if (inputs.size() == 1) return from_model(read_file(path), path.string());
  const fs::path& config = inputs[1];
  std::string json = read_file(path);
  if (!fs::exists(config))
    fail(ErrorKind::io, "{}: is not beside {}; it is needed, as it says which token ends a text (eos_token)",
         config.string(), path.filename().string());
  return from_files({{json_name, std::move(json)}, {config_name, read_file(config)}}, path.string());
}

Tokenizer Tokenizer::load_stored(const fs::path& folder) {
  TokenizerFiles files = read_tokenizer_files(folder);
  const std::string name = (folder / files.begin()->first).string();
  return from_files(std::move(files), name);
}

Tokenizer Tokenizer::from_model(std::string model, const std::string& name) {
  return from_files({{model_name, std::move(model)}}, name);
}

Tokenizer Tokenizer::from_files(TokenizerFiles files, const std::string& name) {
  Tokenizer tokenizer;
  if (const auto model = files.find(model_name); model != files.end()) {
    tokenizer.backend_ = std::make_unique<SentencePieceTokenizer>(model->second, name);
    tokenizer.digest_ = checksum(fmt::format("{} {}", checksum(model->second), emb_piece));
  } else {
    const std::string &json = files.at(json_name), &config = files.at(config_name);
    tokenizer.backend_ =
        std::make_unique<JsonTokenizer>(json, name, config, (fs::path(name).parent_path() / config_name).string());
    tokenizer.digest_ = checksum(fmt::format("{} {} {}", checksum(json), checksum(config), emb_piece));
  }
  tokenizer.emb_ = tokenizer.backend_->emb().value_or(tokenizer.backend_->size());
  tokenizer.files_ = std::move(files);
  return tokenizer;
}

std::string Tokenizer::train(const std::vector<std::string>& texts, int vocabulary) {
  const auto has_text = [](const std::string& text) { return text.find_first_not_of(' ') != std::string::npos; };
  if (std::none_of(texts.begin(), texts.end(), has_text))
    fail(ErrorKind::data, "no text to train a tokenizer on; give a model in data.tokenizer.model");
  TextIterator iterator(texts);
  std::string model;
  // A small corpus may not hold as many pieces as asked for: then the vocabulary is smaller (hard_vocab_limit).
  const auto status = sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                                  {"vocab_size", std::to_string(vocabulary)},
                                                                  {"hard_vocab_limit", "false"},
                                                                  {"byte_fallback", "true"},
                                                                  {"character_coverage", "0.9995"},
                                                                  {"split_by_whitespace", "true"},
                                                                  {"normalization_rule_name", "identity"},
                                                                  {"remove_extra_whitespaces", "false"},
                                                                  {"unk_id", "0"},
                                                                  {"bos_id", "1"},
                                                                  {"eos_id", "2"},
                                                                  {"pad_id", "-1"},
                                                                  {"max_sentence_length", "1000000000"},
                                                                  {"num_threads", "1"},
                                                                  {"minloglevel", "2"}},
                                                                 &iterator, &model);
  if (!status.ok())
    fail(ErrorKind::usage,
         "data.tokenizer.vocabulary: no tokenizer of {} pieces can be trained on these texts; "
         "SentencePiece says: {}",
         vocabulary, status.ToString());
  return model;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, Place place) const {
  std::vector<int32_t> tokens;
  backend_->encode(text, place, tokens);
  return tokens;
}

std::vector<size_t> Tokenizer::token_ends(std::string_view text) const { return backend_->token_ends(text); }

void Tokenizer::require_token(int32_t token) const {
  if (token < 0 || token >= vocabulary())
    fail(ErrorKind::data, "token {} is outside the tokenizer's vocabulary of {}", token, vocabulary());
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, Place place) const {
  std::string text;
  while (true) {
    const auto emb = std::ranges::find(tokens, emb_);
    const auto count = static_cast<size_t>(emb - tokens.begin());
    const auto run = tokens.first(count);
    std::ranges::for_each(run, [&](int32_t token) { require_token(token); });
    text += backend_->decode(run, place);
    if (emb == tokens.end()) return text;
    text += emb_piece;
    tokens = tokens.subspan(count + 1);
    place = Place::after_token;
  }
}

std::string Tokenizer::piece(int32_t token) const {
  require_token(token);
  return token == emb_ ? std::string(emb_piece) : backend_->piece(token);
}

}  // namespace notellm

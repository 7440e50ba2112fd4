// Outputs of many notes: what evaluation and `generate` share.
#pragma once

#include <filesystem>
#include <optional>

#include "data_pipeline/prompt.h"
#include "model/generator.h"
#include "runtime/communicator.h"

namespace notellm {

class NoteGenerator {
 public:
  // batch_notes: notes that are computed at once, on the device. tensor: as Transformer's. Throws as Generator.
  NoteGenerator(const ModelConfig& config, DType compute, const GenerationConfig& generation, int batch_notes,
                Device device = Device::cpu, Communicator* tensor = nullptr);

  // The outputs of examples that end with the guidance (Until::guidance), in their order. Shared out over `ranks`, with
  // a tensor group the data group; every rank gets all. vectors: f32 [examples, note_dim] in host memory for their
  // vectors, or empty. closed: the only outputs, or null. show: progress. Throws as Generator::run; with vectors as
  // require_unit_vectors; Error(data) naming the note: a prompt longer than the model's context.
  std::vector<Generated> generate(Stream& stream, Communicator& ranks, const Weights& weights, const NoteTable& notes,
                                  std::span<const NoteExample> examples, const TokenTrie* closed, Tensor vectors,
                                  bool show);

 private:
  std::vector<Generated> generate_batch(Stream& stream, const Weights& weights, const NoteTable& notes,
                                        std::span<const NoteExample> examples, const TokenTrie* closed, Tensor vectors);

  Generator generator_;
  int context_, batch_notes_;
  PackedBatch batch_;
};

// The closed set of the categories that notes of the table have.
TokenTrie category_trie(const NoteTable& notes);

// What tokens say, by the tokenizer and the prompts of a folder of shards.
class OutputReader {
 public:
  // known: the folder's notes. Throws Error(data): the folder's tokenizer is not the one that made its shards.
  OutputReader(const std::filesystem::path& shards, const NoteTable& known);

  // The category (at most one), or hashtags.
  std::vector<std::string> labels(Task task, std::span<const int32_t> output) const;
  // The category of a note of the table, empty without one; its hashtags.
  std::string category(const NoteTable& notes, int64_t note) const;
  std::vector<std::string> hashtags(const NoteTable& notes, int64_t note) const;
  PromptPreset preset() const { return preset_; }

 private:
  Tokenizer tokenizer_;
  PromptPreset preset_;
};

}  // namespace notellm

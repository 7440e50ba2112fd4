// Checkpoints: a directory RUN/checkpoints/step-00000400 that is whole or not there.
//
//   manifest.json                      format, step, updates, skipped steps, shape of the model, size and
//                                      checksum of each file below, its own checksum; written last
//   model-00001-of-00001.safetensors   f32 master weights under Hugging Face names
//   config.json                        of Hugging Face (LlamaForCausalLM), for tools that read the model
//   note_head.safetensors              note_head.weight, note_head.tau
//   optimizer-00000.safetensors        first_moment.NAME, second_moment.NAME
//   config.yaml                        the effective configuration
//   tokenizer.model
// It is written beside, synced and renamed; RUN/checkpoints/latest (a text file with the name) moves last.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "model/parameters.h"
#include "training/config.h"
#include "training/optimizer.h"

namespace notellm {

struct TrainingPosition {
  int64_t step = 0;     // steps done; the next one to do
  int64_t updates = 0;  // steps that changed the weights
  int64_t skipped = 0;
};

// What a checkpoint says of itself.
struct CheckpointInfo {
  std::filesystem::path path;
  TrainingPosition position;
  int64_t vocabulary = 0;  // rows of the embedding
  int64_t tokens_in_use = 0;
  std::string tokenizer_digest;
  RunConfig config;
};

// Rank 0 writes; afterwards only the newest train.keep_checkpoints are left. On CUDA the stream of the updates must
// have been waited for. Throws Error(io): the run's older checkpoints stay.
void save_checkpoint(const RunConfig& config, const ParameterLayout& layout, const NoteTable& notes,
                     const std::filesystem::path& tokenizer, const TrainingPosition& position,
                     const Optimizer& optimizer);

// The newest complete checkpoint of a run, if there is one.
std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& run);
// A run's folder (its latest checkpoint) or a checkpoint's folder → the checkpoint's. Throws Error(io): neither.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

// Reads the manifest and compares every file's size and checksum with it. Throws Error(checkpoint), naming the file
// that is missing or damaged and the checkpoint before this one.
CheckpointInfo verify_checkpoint(const std::filesystem::path& checkpoint);

// Fills the flat f32 weights, in memory of the device, from model-*.safetensors of a folder (and note_head.safetensors
// where with_note_head). Throws Error(checkpoint): a tensor that is missing or has another shape.
void load_weights(const std::filesystem::path& folder, const ParameterLayout& layout, bool with_note_head, Tensor flat,
                  Device device = Device::cpu);
// Fills master weights and moments of the rank's pieces, from a checkpoint of any topology.
void load_state(const std::filesystem::path& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                Optimizer& optimizer);

}  // namespace notellm

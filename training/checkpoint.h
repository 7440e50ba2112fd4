// Checkpoints: a directory RUN/checkpoints/step-00000400 that is whole or not there (training/checkpoint_folder.h),
// written by all ranks (training/checkpoint_writer.h), read here. It does not depend on how many ranks wrote it.
//
//   manifest.json                      training/manifest.h; written last
//   model-00001-of-0000N.safetensors   f32 master weights under Hugging Face names
//   model.safetensors.index.json       of Hugging Face: which file holds which tensor
//   config.json                        of Hugging Face (LlamaForCausalLM), for tools that read the model
//   note_head.safetensors              note_head.weight, note_head.tau
//   optimizer-00001-of-0000N.safetensors   first_moment.NAME, second_moment.NAME; not in what 'notellm import' wrote
//   config.yaml                        the effective configuration
//   tokenizer.model                    or tokenizer.json and tokenizer_config.json
#pragma once

#include <filesystem>

#include "model/parameters.h"
#include "runtime/communicator.h"
#include "training/checkpoint_folder.h"
#include "training/config.h"
#include "training/manifest.h"
#include "training/optimizer.h"

namespace notellm {

struct CheckpointInfo {
  std::filesystem::path path;
  Manifest manifest;
  RunConfig config;
};

// Reads the manifest and compares every file's size and checksum with it, each rank some of the files. Throws
// Error(checkpoint) on all ranks, naming a file that is missing or damaged and the checkpoint before this one. A
// collective.
CheckpointInfo verify_checkpoint(const std::filesystem::path& checkpoint, Communicator& ranks);
// … on one rank.
CheckpointInfo verify_checkpoint(const std::filesystem::path& checkpoint);
// Throws Error(checkpoint) unless notes, of the folder `shards`, have the tokenizer that the checkpoint's model was
// trained with.
void require_same_tokenizer(const CheckpointInfo& checkpoint, const NoteTable& notes, const std::string& shards);

// Fills the flat f32 weights, in memory of the device, from the model's files of a folder (and note_head.safetensors
// where with_note_head): those that model.safetensors.index.json names, or the one file of a model without an index.
// Throws Error(checkpoint): a tensor that is missing or has another shape.
void load_weights(const std::filesystem::path& folder, const ParameterLayout& layout, bool with_note_head, Tensor flat,
                  Device device = Device::cpu);
// Fills the master weights of the rank's pieces, from a checkpoint of any topology. Throws as load_weights does.
void load_master_weights(const CheckpointInfo& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                         Optimizer& optimizer);
// Fills master weights and moments of the rank's pieces, likewise. Throws as load_weights does.
void load_state(const CheckpointInfo& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                Optimizer& optimizer);

}  // namespace notellm

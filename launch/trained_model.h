// A trained model with the shards of its notes: what evaluate, embed and neighbors begin with.
#pragma once

#include <filesystem>
#include <string>

#include "data_pipeline/shards.h"
#include "model/parameters.h"
#include "runtime/memory.h"
#include "runtime/mesh.h"
#include "training/checkpoint.h"
#include "training/config.h"

namespace notellm {

// The ranks of a command that reads a trained model: tensor groups as parallel.tensor has them, but a program alone
// holds the whole model, whatever its training had. Throws as Mesh does.
Mesh mesh_of(const RunConfig& config, Communicator& ranks);

struct TrainedModel {
  RunConfig config;  // as given, but `model` is the checkpoint's: what was trained decides the architecture
  std::filesystem::path checkpoint;
  TrainingPosition position;
  std::string trained_on;  // id of the shards; empty: it is not known
  Shards shards;
  ParameterLayout layout;
  Buffer memory;    // the weights in config.compute(), on config.device
  Weights weights;  // views into `memory`, of the rank's part
  float tau;        // of the f32 master weights

  // Reads data.shards of the configuration and a checkpoint: the folder of one, or of a run; empty: the newest one of
  // train.run. Every file of the checkpoint is compared with its checksum, by one of the ranks. A collective. Throws
  // Error: io (no shards, no checkpoint), data (damaged shards), checkpoint (damaged, or trained on shards of another
  // tokenizer), peer (ranks that find different checkpoints).
  static TrainedModel load(const RunConfig& config, const std::string& checkpoint_or_empty, Mesh& mesh);
};

}  // namespace notellm

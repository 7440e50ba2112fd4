// A trained model with the shards of its notes: what evaluate, embed and neighbors begin with.
#pragma once

#include <filesystem>
#include <string>

#include "data_pipeline/shards.h"
#include "model/parameters.h"
#include "runtime/memory.h"
#include "training/checkpoint.h"
#include "training/config.h"

namespace notellm {

struct TrainedModel {
  RunConfig config;  // as given, but `model` is the checkpoint's: what was trained decides the architecture
  std::filesystem::path checkpoint;
  TrainingPosition position;
  Shards shards;
  ParameterLayout layout;
  Buffer memory;    // the weights in config.compute(), on config.device
  Weights weights;  // views into `memory`
  float tau;        // of the f32 master weights

  // Reads data.shards of the configuration and a checkpoint: the folder of one, or of a run; empty: the newest one of
  // train.run. Every file of the checkpoint is compared with its checksum, by one of the ranks. A collective. Throws
  // Error: io (no shards, no checkpoint), data (damaged shards), checkpoint (damaged, or trained on shards of another
  // tokenizer), peer (ranks that find different checkpoints). part: of the model, for a tensor group.
  static TrainedModel load(const RunConfig& config, const std::string& checkpoint_or_empty, Communicator& ranks,
                           TensorPart part = {});
};

}  // namespace notellm

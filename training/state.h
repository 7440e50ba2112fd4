// What training changes from step to step: master weights, moments, the weights to compute with, gradients.
#pragma once

#include "data_pipeline/note_table.h"
#include "model/parameters.h"
#include "runtime/mesh.h"
#include "training/config.h"
#include "training/gradients.h"
#include "training/model_weights.h"
#include "training/optimizer.h"

namespace notellm {

struct TrainingState {
  // Memory only: weights and moments are zero until start_anew(), or until a checkpoint is loaded into them.
  TrainingState(const RunConfig& config, const PromptTokens& prompt, Mesh& mesh);
  void start_anew(const RunConfig& config, const PromptTokens& prompt);

  // The master value; waits for the stream. A collective where weights are sharded.
  float tau(Stream& stream);
  // One update from the gradients of a finished step. Returns the gradient's global norm before clipping; when that is
  // not finite nothing is changed (the caller counts skipped steps; all ranks see the same norm). update: from 1. A
  // collective of all ranks.
  double update(Stream& stream, double learning_rate, int64_t update);

  Mesh& mesh;
  ParameterLayout layout;
  ShardMap shards;
  Optimizer optimizer;
  ModelWeights weights;
  Gradients gradients;
};

}  // namespace notellm

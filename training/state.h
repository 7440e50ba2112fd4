// What training changes from step to step: master weights, moments, the weights to compute with, gradients.
#pragma once

#include "data_pipeline/note_table.h"
#include "model/parameters.h"
#include "runtime/memory.h"
#include "training/config.h"
#include "training/optimizer.h"

namespace notellm {

struct TrainingState {
  // Memory only: weights and moments are zero until start_anew(), or until a checkpoint is loaded into them.
  TrainingState(const RunConfig& config, const PromptTokens& prompt);
  void start_anew(const RunConfig& config, const PromptTokens& prompt);
  float tau(Stream& stream) const;  // the master value; waits for the stream

  ParameterLayout layout;
  Optimizer optimizer;
  Buffer gradient_memory;
  Weights weights;    // what the model computes with: optimizer.compute_weights()
  Weights gradients;  // f32
};

}  // namespace notellm

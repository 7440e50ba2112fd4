#include "training/state.h"

namespace notellm {

TrainingState::TrainingState(const RunConfig& config, const PromptTokens& prompt)
    : layout(config.model, padded_vocabulary(prompt.vocabulary)),
      optimizer(config.optimizer, layout, config.compute(), config.device),
      gradient_memory(layout.size() * size_of(DType::f32), memory_of(config.device), "gradients"),
      weights(layout, config.model, optimizer.compute_weights()),
      gradients(layout, config.model, gradient_memory.tensor(DType::f32, {layout.size()})) {}

void TrainingState::start_anew(const RunConfig& config, const PromptTokens& prompt) {
  Stream stream(config.device);
  initialize(stream, layout, config.model, config.seed, prompt.vocabulary, prompt.emb, optimizer.weights());
  optimizer.refresh_compute_weights();
}

float TrainingState::tau(Stream& stream) const {
  float tau = 0;
  copy(stream, layout.at("note_head.tau").view(optimizer.weights()), Tensor::of(&tau, {1}));
  stream.synchronize();
  return tau;
}

}  // namespace notellm

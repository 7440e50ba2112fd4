#include "training/state.h"

#include <cmath>

namespace notellm {
namespace {

int shards_of(const RunConfig& config, const Mesh& mesh) {
  return config.parallel.sharding == Sharding::none ? 1 : mesh.data.size();
}

}  // namespace

TrainingState::TrainingState(const RunConfig& config, const PromptTokens& prompt, Mesh& mesh)
    : mesh(mesh),
      layout(config.model, padded_vocabulary(prompt.vocabulary), {mesh.tensor.rank(), mesh.tensor.size()},
             shards_of(config, mesh)),
      shards(layout, config.parallel.sharding, mesh.data.rank(), mesh.data.size()),
      optimizer(config.optimizer, layout, shards, config.device),
      weights(layout, shards, optimizer.weights(), config.compute(), config.device, mesh.data),
      gradients(layout, shards, config.device, mesh) {}

void TrainingState::start_anew(const RunConfig& config, const PromptTokens& prompt) {
  Stream stream(config.device);
  initialize(layout, config.model.init, config.seed, prompt.vocabulary, prompt.emb,
             [&](const Parameter& p, Tensor values) {
               const Tensor all = values.reshape({values.size()});
               shards.for_runs(p, [&](const ShardMap::Run& run) {
                 copy(stream, all.slice(run.first, run.first + run.count),
                      optimizer.weights().slice(run.at, run.at + run.count));
               });
               stream.synchronize();  // before the next parameter's values are written there
             });
  weights.refresh();
}

// Of the rank that keeps it; the others add nothing.
float TrainingState::tau(Stream& stream) {
  float tau = 0;
  shards.for_runs(layout.at("note_head.tau"), [&](const ShardMap::Run& run) {
    copy(stream, optimizer.weights().slice(run.at, run.at + 1), Tensor::of(&tau, {1}));
  });
  stream.synchronize();
  if (shards.sharded()) mesh.data.all_reduce_sum("temperature", Tensor::of(&tau, {1}));
  return tau;
}

double TrainingState::update(Stream& stream, double learning_rate, int64_t update) {
  double squares = optimizer.squares(stream, gradients.pieces());
  mesh.tensor.all_reduce_sum("gradient norm", Tensor::of(&squares, {1}));
  if (shards.sharded()) mesh.data.all_reduce_sum("gradient norm", Tensor::of(&squares, {1}));
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return norm;
  optimizer.update(stream, gradients.pieces(), weights.narrow(), norm, learning_rate, update);
  weights.gather(stream);
  return norm;
}

}  // namespace notellm

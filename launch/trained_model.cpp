#include "launch/trained_model.h"

#include "kernels/convert.h"
#include "runtime/log.h"

namespace notellm {
namespace {

// The flat weights of a checkpoint, in the type and on the device that the model computes with, and tau.
Buffer load_compute_weights(const std::filesystem::path& checkpoint, const ParameterLayout& layout, DType compute,
                            Device device, float& tau) {
  Buffer master(layout.size() * size_of(DType::f32));
  const Tensor weights = master.tensor(DType::f32, {layout.size()});
  load_weights(checkpoint, layout, true, weights);
  tau = *layout.at("note_head.tau").view(weights).as<float>();
  if (compute == DType::f32) return on_device(device, std::move(master));
  Buffer narrow(layout.size() * size_of(DType::bf16));
  Stream stream;
  convert(stream, weights, narrow.tensor(DType::bf16, {layout.size()}));
  return on_device(device, std::move(narrow));
}

}  // namespace

Mesh mesh_of(const RunConfig& config, Communicator& ranks) {
  return {ranks, ranks.size() == 1 ? 1 : config.parallel.tensor};
}

TrainedModel TrainedModel::load(const RunConfig& config, const std::string& checkpoint_or_empty, Mesh& mesh) {
  const std::filesystem::path folder =
      find_checkpoint(checkpoint_or_empty.empty() ? config.train.run : checkpoint_or_empty);
  mesh.world.require_equal("checkpoint", "the checkpoint", folder.string());
  const CheckpointInfo info = verify_checkpoint(folder, mesh.world);
  Shards shards = read_shards(config.data.shards);
  ParameterLayout layout(info.config.model, padded_vocabulary(shards.notes.prompt.vocabulary),
                         {mesh.tensor.rank(), mesh.tensor.size()});
  require_same_tokenizer(info, shards.notes, config.data.shards);
  RunConfig effective = config;
  effective.model = info.config.model;
  float tau = 0;
  Buffer memory = load_compute_weights(folder, layout, config.compute(), config.device, tau);
  const Weights weights(layout, memory.tensor(config.compute(), {layout.size()}));
  spdlog::info("{}: the model after step {}", folder.string(), info.manifest.position.step);
  return {effective,
          folder,
          info.manifest.position,
          info.manifest.trained_on,
          std::move(shards),
          std::move(layout),
          std::move(memory),
          weights,
          tau};
}

}  // namespace notellm

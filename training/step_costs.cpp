#include "training/step_costs.h"

#include <algorithm>

#include "kernels/infonce.h"
#include "losses/token_loss.h"
#include "model/tiles.h"
#include "training/layer_window.h"

namespace notellm {
namespace {

constexpr int64_t floats = 4, doubles = 8;
constexpr int64_t alignment_bytes = 64;  // of each tensor in an arena

}  // namespace

int64_t StepSizes::count() const {
  int64_t sum = 0;
  for (const MicroBatches& alike : micro_batches) sum += alike.times;
  return sum;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t pairs_per_group(const RunConfig& config, int data_ranks, int tensor_ranks) {
  if (config.train.pairs_per_step < data_ranks)
    fail(ErrorKind::usage, "train.pairs_per_step {} is fewer than the {} {}: every one needs a pair",
         config.train.pairs_per_step, data_ranks, tensor_ranks == 1 ? "ranks" : "tensor groups");
  return ceil_div(config.train.pairs_per_step, data_ranks);
}

int micro_batches(const RunConfig& config, int64_t pairs) {
  return config.train.micro_batch_pairs == 0 ? 1 : static_cast<int>(ceil_div(pairs, config.train.micro_batch_pairs));
}

FlatRange notes_of_part(int64_t notes, TensorPart part) {
  const int64_t pairs = notes / 2;
  return {2 * (pairs * part.index / part.count), 2 * (pairs * (part.index + 1) / part.count)};
}

TransformerShape transformer_shape(const RunConfig& config, TensorPart part) {
  return {config_of_part(config.model, part.count), config.compute(), config.device,
          config.parallel.recompute == Recompute::layer, part};
}

SamplerConfig sampler_config(const RunConfig& config) {
  return {static_cast<uint64_t>(config.seed), config.loss.hashtag_share, config.loss.random_topics,
          config.loss.alpha > 0 ? Until::output : Until::note};
}

Longest longest_sequence(const RunConfig& config, const NoteTable& notes) {
  const Until until = sampler_config(config).until;
  Longest longest;
  std::vector<int32_t> sequence;
  for (int32_t note = 0; note < notes.size(); ++note) {
    NoteExample category{note, Task::category, {}, until}, hashtags{note, Task::hashtags, {}, until};
    for (int64_t t = 0; t < std::min(notes.hashtags(note), notes.prompt.hashtag_guidance.size()); ++t)
      hashtags.topics.push_back(static_cast<int32_t>(t));
    if (notes.category[note].empty()) category.until = Until::note;
    for (const NoteExample* example : {&category, &hashtags}) {
      if (example->task == Task::hashtags && example->topics.empty()) continue;
      int32_t first_label;
      compose(notes, *example, sequence, &first_label);
      const auto length = static_cast<int64_t>(sequence.size());
      if (length > config.model.context)
        fail(ErrorKind::data,
             "note '{}' makes a sequence of {} tokens, more than model.context {}: raise model.context or lower "
             "data.prompt.max_note_tokens",
             notes.ids[note], length, config.model.context);
      longest.tokens = std::max(longest.tokens, length);
      longest.labels = std::max(longest.labels, length - first_label);
    }
  }
  return longest;
}

ArenaSizes largest_sizes(const RunConfig& config, Longest longest, int data_ranks, int tensor_ranks) {
  const int64_t pairs = pairs_per_group(config, data_ranks, tensor_ranks);
  ArenaSizes sizes;
  sizes.micro_batches = micro_batches(config, pairs);
  sizes.notes = 2 * ceil_div(pairs, sizes.micro_batches);
  sizes.part_notes = 2 * ceil_div(sizes.notes / 2, tensor_ranks);
  sizes.tokens = sizes.notes * longest.tokens;
  sizes.labels = sizes.notes * longest.labels;
  sizes.hidden_rows = std::min(sizes.tokens, sizes.notes + sizes.labels);
  sizes.own_notes = sizes.part_notes * sizes.micro_batches;
  sizes.own_labels = sizes.labels * sizes.micro_batches;
  sizes.all_notes = 2 * int64_t{config.train.pairs_per_step};
  // Sums for keys that several notes share: a row a note and key at most, which without sharing were a token each.
  sizes.attention_floats = sizes.tokens * config_of_part(config.model, tensor_ranks).kv_dim();
  return sizes;
}

StepMemory step_memory(const RunConfig& config, int64_t vocabulary, int tensor_ranks, const ArenaSizes& s) {
  const ModelConfig& m = config.model;
  const DType compute = config.compute();
  const int64_t size = size_of(compute), own = s.own_notes;
  const TransformerShape shape = transformer_shape(config, {0, tensor_ranks});
  const BatchSize batch{s.tokens, s.hidden_rows};
  const TransformerMemory kept = transformer_memory(shape, batch, true, s.attention_floats);
  const int64_t token =
      token_loss_arena_bytes(config.device, compute, m.dim, vocabulary / tensor_ranks, tensor_ranks, s.labels);
  const int64_t note_head = s.part_notes * (2 * m.dim + m.note_dim) * size + 3 * alignment_bytes;
  const int64_t d_hidden = s.hidden_rows * m.dim * size + alignment_bytes;
  StepMemory memory;
  memory.one_pass = s.micro_batches == 1;
  memory.results = (own * (2 * m.note_dim + 1) + s.own_labels) * floats + 4 * alignment_bytes;
  memory.activations = kept.kept;
  memory.workspace = std::max({kept.forward, note_head, d_hidden + std::max({token, note_head, kept.backward})});
  memory.vectors = (2 * s.all_notes + own) * m.note_dim * floats + own * (doubles + 2 * floats) +
                   infonce_workspace(config.device, own, s.all_notes, m.note_dim) * floats + 8 * alignment_bytes;
  if (memory.one_pass) return memory;
  const TransformerMemory first = transformer_memory(shape, batch, false, s.attention_floats);
  const int64_t first_pass = first.kept + std::max(first.forward, note_head);  // less than with backward, but for cuDNN
  memory.workspace = std::max(memory.workspace, first_pass - memory.activations);
  return memory;
}

namespace {

// Gathers of each layer in a step, with sharding: parameters.
std::vector<int64_t> fetches_of_layers(int layers, const StepSizes& sizes) {
  std::vector<int64_t> fetches(static_cast<size_t>(layers), 0);
  LayerWindow window(layers);
  const auto begins = [&](int layer) {
    const LayerWindow::Fetch fetch = window.begins(layer);
    if (fetch.itself) ++fetches[layer];
    if (fetch.next >= 0) ++fetches[fetch.next];
  };
  const auto forward = [&] {
    for (int layer = 0; layer < layers; ++layer) begins(layer);
  };
  const int64_t count = sizes.count();
  for (int64_t i = 0; count > 1 && i < count; ++i) forward();
  for (int64_t i = 0; i < count; ++i) {
    forward();
    for (int layer = layers - 1; layer >= 0; --layer) begins(layer);
  }
  return fetches;
}

void add_parameters(const RunConfig& config, const ParameterLayout& layout, const ShardMap& shards,
                    const StepSizes& sizes, Traffic& data) {
  if (!shards.sharded()) return;
  const int64_t size = size_of(config.compute()), last = std::ssize(shards.pieces()) - 1;
  const std::vector<int64_t> fetches = fetches_of_layers(layout.part_config().layers, sizes);
  for (int64_t i = 0; i <= last; ++i) {
    const bool comes_and_goes = shards.sharding() == Sharding::parameters && i != 0 && i != last;
    const int64_t times = comes_and_goes ? fetches[i - 1] : 1;
    data.gather("parameters", shards.pieces()[i].flat.size() * size * times, times);
  }
}

void add_gradients(const ParameterLayout& layout, const ShardMap& shards, const StepSizes& sizes, Traffic& data) {
  const int64_t last = std::ssize(layout.buckets()) - 1;
  for (int64_t i = 0; i <= last; ++i) {
    const int64_t elements = layout.buckets()[i].size();
    if (!shards.sharded()) {
      data.all_reduce("gradients", elements, floats);
      continue;
    }
    const bool each_time = shards.sharding() >= Sharding::gradients && i != 0 && i != last;
    const int64_t times = each_time ? sizes.count() : 1;
    data.reduce_scatter("gradients", elements * floats * times, shards.pieces()[i].flat.size() * floats * times, times);
  }
}

void add_tensor(const RunConfig& config, const ParameterLayout& layout, const StepSizes& sizes, StepTraffic& traffic) {
  const TransformerShape shape = transformer_shape(config, layout.part());
  if (shape.tensor.count == 1) return;
  const int64_t logit_tile = logit_rows(config.device, layout.vocabulary() / shape.tensor.count);
  for (const auto& [batch, times] : sizes.micro_batches) {
    Traffic one(shape.tensor.index, shape.tensor.count);
    if (sizes.count() > 1) add_forward(shape, {batch.tokens, batch.notes}, one);
    add_forward(shape, {batch.tokens, batch.read_rows}, one);
    one.gather("sums of logits", batch.labels * 3 * floats, ceil_div(batch.labels, logit_tile));
    add_backward(shape, {batch.tokens, batch.read_rows}, one);
    traffic.tensor.add(one, times);
  }
  add_sums_of_copies(layout, traffic.tensor, traffic.kv_copies);
  traffic.tensor.all_reduce("gradient norm", 1, doubles);
}

}  // namespace

StepTraffic step_traffic(const RunConfig& config, const ParameterLayout& layout, const ShardMap& shards,
                         MeshPlace place, const StepSizes& sizes) {
  const TensorPart copies = kv_copies_of(config.model, layout.part());
  StepTraffic traffic{Traffic(place.rank(), place.ranks()), Traffic(place.data_rank, place.data_ranks),
                      Traffic(place.tensor_rank, place.tensor_ranks), Traffic(copies.index, copies.count)};
  const int64_t row = config.model.note_dim * floats;
  traffic.world.gather("note vectors", sizes.own_notes * row);
  traffic.world.reduce_scatter("note vector gradients", sizes.all_notes * row, sizes.own_notes * row);
  traffic.world.all_reduce("loss", step_sums, doubles);
  traffic.world.gather("signal", doubles);
  add_gradients(layout, shards, sizes, traffic.data);
  add_parameters(config, layout, shards, sizes, traffic.data);
  if (shards.sharded()) {
    traffic.data.all_reduce("temperature", 1, floats);
    traffic.data.all_reduce("gradient norm", 1, doubles);
  }
  add_tensor(config, layout, sizes, traffic);
  return traffic;
}

}  // namespace notellm

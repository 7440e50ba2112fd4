#include "training/prediction.h"

#include <algorithm>

namespace notellm {
namespace {

constexpr double floats = 4;
// AdamW and the sum of squares before it: gradient twice, weight and moments read and written.
constexpr double optimizer_bytes = 2 * 4 + 3 * 8;
// A tile of f32 logits: written, read twice by cross entropy, which writes its gradient in the products' type, which
// two products read.
constexpr double logit_floats = 3, logit_gradients = 3;

// What one rank computes and exchanges.
class Predictor {
 public:
  Predictor(const RunConfig& config, const NoteStatistics& notes, const Plan& plan, const ClusterConfig& cluster)
      : config_(config),
        m_(config.model),
        notes_(notes),
        plan_(plan),
        size_(static_cast<double>(size_of(config.compute()))),
        parts_(plan.place.tensor_ranks),
        peak_(1e12 * (config.precision == Precision::bf16 ? cluster.gpu.bf16_tflops : cluster.gpu.fp32_tflops)),
        products_(peak_ * cluster.attainable.products),
        attention_(peak_ * cluster.attainable.attention),
        fp32_(1e12 * cluster.gpu.fp32_tflops * cluster.attainable.products),
        memory_(1e9 * cluster.gpu.memory_gbs * cluster.attainable.memory),
        world_(group_links(cluster, plan.place.ranks(), 1)),
        data_(group_links(cluster, plan.place.data_ranks, plan.place.tensor_ranks)),
        tensor_(group_links(cluster, plan.place.tensor_ranks, 1)),
        copies_(group_links(cluster, plan.traffic.kv_copies.ranks(), 1)) {}

  Prediction run();

 private:
  // Of all layers of one pass.
  struct Layers {
    double products = 0, attention = 0, memory_ops = 0;
    double seconds() const { return products + attention + memory_ops; }
    void add(const Layers& o, double times) {
      products += o.products * times;
      attention += o.attention * times;
      memory_ops += o.memory_ops * times;
    }
  };
  Layers forward(const BatchCounts& batch, bool first_pass) const;
  Layers backward(const BatchCounts& batch) const;
  double heads(const BatchCounts& batch) const;
  double products(double flops, double bytes) const { return std::max(flops / products_, bytes / memory_); }
  double product_bytes(double tokens, double passes) const;
  CollectiveKind sum_kind() const {
    return config_.parallel.sharding == Sharding::none ? CollectiveKind::all_reduce : CollectiveKind::reduce_scatter;
  }
  bool two_passes() const { return plan_.sizes.count() > 1; }
  double over_data(CollectiveKind kind, double elements, double element_bytes) const;
  double not_hidden(double of_layer, const Layers& pass) const;
  void add_data_collectives(const BatchCounts& batch, double times, double sums);
  void add_rest_of_data_collectives();
  double optimizer() const;

  const RunConfig& config_;
  const ModelConfig& m_;
  const NoteStatistics& notes_;
  const Plan& plan_;
  double size_, parts_, peak_, products_, attention_, fp32_, memory_;
  GroupLinks world_, data_, tensor_, copies_;
  double gradients_ = 0, parameters_ = 0;  // of the collectives of the data group what nothing hides
};

// Operands and results of a layer's products for its tokens, and the weights.
double Predictor::product_bytes(double tokens, double passes) const {
  const double of_token = 5.0 * m_.dim + (2.0 * m_.q_dim() + m_.kv_dim() + 3.0 * m_.ffn) / parts_;
  return passes * m_.layers * (tokens * of_token + static_cast<double>(plan_.layer_elements)) * size_;
}

Predictor::Layers Predictor::forward(const BatchCounts& batch, bool first_pass) const {
  // Forward and backward are three times the products, and 3.5 times the attention, of forward. A first pass, to the
  // note rows alone, is what it adds.
  const StepFlops all = batch_flops(m_, batch, notes_.vocabulary, false);
  StepFlops one{.layers = all.layers / 3, .attention = all.attention / 3.5};
  if (first_pass) {
    const StepFlops both = batch_flops(m_, batch, notes_.vocabulary, true);
    one = {.layers = both.layers - all.layers, .attention = both.attention - all.attention};
  }
  const auto tokens = static_cast<double>(batch.tokens);
  return {products(one.layers / parts_, product_bytes(tokens, 1)), one.attention / parts_ / attention_,
          tokens * m_.layers * memory_op_elements(m_, false) * size_ / parts_ / memory_};
}

Predictor::Layers Predictor::backward(const BatchCounts& batch) const {
  const bool again = config_.parallel.recompute == Recompute::layer;
  const StepFlops all = batch_flops(m_, batch, notes_.vocabulary, false);
  const StepFlops with = batch_flops(m_, batch, notes_.vocabulary, false, again);
  const auto tokens = static_cast<double>(batch.tokens);
  // Gradients of weights are read and written in f32.
  const double weights = 2 * floats * static_cast<double>(plan_.layer_elements) * m_.layers;
  const double elements = memory_op_elements(m_, true) + (again ? memory_op_elements(m_, false) : 0);
  return {products((all.layers * 2 / 3 + with.layers - all.layers) / parts_,
                   product_bytes(tokens, again ? 3 : 2) + weights),
          (all.attention * 2.5 / 3.5 + with.attention - all.attention) / parts_ / attention_,
          tokens * m_.layers * elements * size_ / parts_ / memory_};
}

double Predictor::heads(const BatchCounts& batch) const {
  const StepFlops all = batch_flops(m_, batch, notes_.vocabulary, false);
  const double logits = static_cast<double>(batch.labels) * static_cast<double>(notes_.vocabulary) / parts_;
  return all.heads / parts_ / products_ + logits * (logit_floats * floats + logit_gradients * size_) / memory_;
}

// A collective of the data group over an array of which each rank has a share, or all.
double Predictor::over_data(CollectiveKind kind, double elements, double element_bytes) const {
  const double ways = kind == CollectiveKind::all_reduce ? 2 : 1;
  const double bytes = ways * elements * element_bytes * (data_.ranks - 1) / data_.ranks;
  return collective_seconds(data_, {"", kind, static_cast<int64_t>(bytes), 1});
}

// Collectives of layers, one of each, beside a pass that computes: what nothing hides. The first comes before the first
// layer, or the last one after the last layer; the others go beside the other layers.
double Predictor::not_hidden(double of_layer, const Layers& pass) const {
  const double others = m_.layers - 1;
  return of_layer + std::max(0.0, others * of_layer - others / m_.layers * pass.seconds());
}

// Gathers and sums of one micro-batch's layers. `sums`: this is a backward pass after which gradients are summed.
void Predictor::add_data_collectives(const BatchCounts& batch, double times, double sums) {
  if (data_.ranks == 1) return;
  const auto layer = static_cast<double>(plan_.layer_elements);
  const double sum = over_data(sum_kind(), layer, floats);
  const Layers back = backward(batch);
  if (config_.parallel.sharding != Sharding::parameters) {
    gradients_ += sums * not_hidden(sum, back);
    return;
  }
  const double gather = over_data(CollectiveKind::gather, layer, size_);
  if (two_passes()) parameters_ += times * not_hidden(gather, forward(batch, true));
  parameters_ += times * not_hidden(gather, forward(batch, false));
  // Backward: both on one stream each, over one network. The layer that comes first is there already.
  const double both = not_hidden(gather + sum, back) - gather, alone = not_hidden(gather, back) - gather;
  parameters_ += times * alone;
  gradients_ += times * (both - alone);
}

// What comes after the last backward pass, and after the update.
void Predictor::add_rest_of_data_collectives() {
  if (data_.ranks == 1) return;
  const auto layers = static_cast<double>(plan_.layer_elements * m_.layers),
             others = static_cast<double>(plan_.other_elements);
  gradients_ += over_data(sum_kind(), others, floats);
  if (config_.parallel.sharding == Sharding::none) return;
  parameters_ += over_data(CollectiveKind::gather, others, size_);
  if (config_.parallel.sharding != Sharding::parameters)
    parameters_ += over_data(CollectiveKind::gather, layers, size_);
}

double Predictor::optimizer() const {
  const double elements = static_cast<double>(plan_.own_elements);
  const double narrow = config_.precision == Precision::bf16 ? size_ : 0;
  const double zeros = static_cast<double>(plan_.memory.gradients);  // written at the step's begin
  return (elements * (optimizer_bytes + narrow) + zeros) / memory_;
}

Prediction Predictor::run() {
  Layers layers;
  double head_seconds = 0;
  const auto& batches = plan_.sizes.micro_batches;
  const bool each_time = config_.parallel.sharding >= Sharding::gradients;
  for (const auto& [batch, times] : batches) {
    const auto count = static_cast<double>(times);
    layers.add(forward(batch, false), count);
    layers.add(backward(batch), count);
    if (two_passes()) layers.add(forward(batch, true), count);
    head_seconds += count * heads(batch);
    const bool last = &batch == &batches.back().counts;
    add_data_collectives(batch, count, each_time ? count : last ? 1 : 0);
  }
  add_rest_of_data_collectives();
  double small = 0, vectors = 0;
  for (const Traffic::Item& item : plan_.traffic.world.items())
    (item.name.starts_with("note vector") ? vectors : small) += collective_seconds(world_, item);
  for (const Traffic::Item& item : plan_.traffic.data.items())
    if (item.name != "gradients" && item.name != "parameters") small += collective_seconds(data_, item);
  const double infonce = infonce_flops(plan_.sizes.own_notes, plan_.sizes.all_notes, m_.note_dim).total() / fp32_;

  Prediction p;
  p.parts = {{"products of the layers", layers.products},
             {"attention", layers.attention},
             {"norms, RoPE, SwiGLU", layers.memory_ops},
             {"LM head, token loss, vectors", head_seconds},
             {"InfoNCE", infonce},
             {"vectors of all ranks, and back", vectors},
             {"tensor group's collectives",
              collective_seconds(tensor_, plan_.traffic.tensor) + collective_seconds(copies_, plan_.traffic.kv_copies)},
             {"sums of gradients, not hidden", gradients_},
             {"gathers of parameters, not hidden", parameters_},
             {"optimizer", optimizer()},
             {"small collectives", small}};
  p.mfu = plan_.flops.model() / (p.seconds() * peak_ * plan_.place.ranks());
  p.notes_per_second = static_cast<double>(plan_.sizes.all_notes) / p.seconds();
  return p;
}

}  // namespace

double Prediction::seconds() const {
  double sum = 0;
  for (const Part& part : parts) sum += part.seconds;
  return sum;
}

double memory_op_elements(const ModelConfig& c, bool backward) {
  const double rope = 2.0 * (c.q_dim() + c.kv_dim() / 2.0), norms = 2.0 * c.dim;
  if (!backward) return 4 * norms + rope + 3.0 * c.ffn;
  return (2 + 4) * norms + rope + 6.0 * c.ffn;
}

Prediction predict(const RunConfig& config, const NoteStatistics& notes, const Plan& plan,
                   const ClusterConfig& cluster) {
  return Predictor(config, notes, plan, cluster).run();
}

}  // namespace notellm

#include "training/flops.h"

#include <vector>

namespace notellm {
namespace {

// One pass forward: everything in the last layer but keys and values is computed for the rows that are read alone.
StepFlops forward_flops(const ModelConfig& c, const BatchCounts& batch, bool with_labels) {
  const auto tokens = static_cast<double>(batch.tokens);
  const auto read_rows = static_cast<double>(with_labels ? batch.read_rows : batch.notes);
  const double queries_out_and_ffn = 2.0 * c.q_dim() * c.dim + 3.0 * c.ffn * c.dim,
               keys_values = double(c.kv_dim()) * c.dim;
  StepFlops flops;
  flops.layers = 2 * (((c.layers - 1) * tokens + read_rows) * queries_out_and_ffn + c.layers * tokens * keys_values);
  flops.attention = 4.0 * c.q_dim() * ((c.layers - 1) * batch.keys + (with_labels ? batch.read_keys : batch.note_keys));
  flops.heads = 2.0 * batch.notes * c.note_dim * c.dim;
  return flops;
}

// What the backward pass computes again of all layers but the last: everything but the product behind SwiGLU.
StepFlops recomputed_flops(const ModelConfig& c, const BatchCounts& batch) {
  const auto tokens = static_cast<double>(batch.tokens);
  StepFlops flops;
  flops.layers = 2 * (c.layers - 1) * tokens * c.dim * (2.0 * c.q_dim() + c.kv_dim() + 2.0 * c.ffn);
  flops.attention = 4.0 * c.q_dim() * (c.layers - 1) * batch.keys;
  flops.repeated = flops.total();
  return flops;
}

}  // namespace

BatchCounts count(const PackedBatch& batch) {
  std::vector<uint8_t> note(batch.tokens.size(), 0), label(batch.tokens.size(), 0);
  for (const int32_t row : batch.note_rows) note[row] = 1;
  for (const int32_t row : batch.label_rows) label[row] = 1;
  BatchCounts counts{.notes = std::ssize(batch.note_rows),
                     .labels = std::ssize(batch.label_rows),
                     .tokens = std::ssize(batch.tokens),
                     .unshared_tokens = batch.unshared_tokens};
  for (const Segment& segment : batch.segments) {
    const Segment none{0, 0, -1};
    const Segment& prefix = segment.prefix < 0 ? none : batch.segments[segment.prefix];
    for (int32_t token = segment.begin; token < segment.end; ++token) {
      const double seen = prefix.end - prefix.begin + token - segment.begin + 1;
      counts.keys += seen;
      counts.note_keys += note[token] ? seen : 0;
      counts.read_keys += note[token] || label[token] ? seen : 0;
      counts.read_rows += note[token] || label[token];
    }
  }
  return counts;
}

StepFlops& StepFlops::operator+=(const StepFlops& other) {
  layers += other.layers;
  attention += other.attention;
  heads += other.heads;
  infonce += other.infonce;
  repeated += other.repeated;
  return *this;
}

StepFlops batch_flops(const ModelConfig& c, const BatchCounts& batch, int64_t vocabulary, bool first_pass,
                      bool recompute) {
  StepFlops flops = forward_flops(c, batch, true);
  // Backward: two products for each one forward; in attention five for two, since the scores are computed again.
  flops.layers *= 3;
  flops.repeated = 0.5 * flops.attention;
  flops.attention *= 3.5;
  flops.heads *= 3;
  flops.heads += 3 * 2.0 * batch.labels * vocabulary * c.dim;
  if (first_pass) {
    StepFlops first = forward_flops(c, batch, false);
    first.repeated = first.total();
    flops += first;
  }
  if (recompute) flops += recomputed_flops(c, batch);
  return flops;
}

StepFlops infonce_flops(int64_t rows, int64_t all, int64_t dimensions) {
  StepFlops flops;
  flops.infonce = 4 * 2.0 * rows * all * dimensions;
  flops.repeated = flops.infonce / 4;
  return flops;
}

}  // namespace notellm

#include <numeric>

#include "kernels/attention.h"
#include "kernels/attention_cudnn.h"
#include "kernels/infonce.h"
#include "kernels/note_vector.h"
#include "launch/bench_ops.h"

namespace notellm {
namespace {

constexpr auto f32 = DType::f32;
constexpr int32_t prefix_tokens = 32, own_tokens = 96;  // of each note

// What attention reads and writes.
struct AttentionOperands {
  Tensor q, kv, o, lse, d_o, dq, dkv;
  AttentionOperands(OpTimer& timer, const ModelConfig& model, int64_t tokens) {
    const auto heads = [&](int64_t n) { return timer.operands().random(timer.compute(), {tokens, n, model.head_dim}); };
    q = heads(model.heads), o = heads(model.heads), d_o = heads(model.heads), dq = heads(model.heads);
    kv = heads(2 * model.kv_heads), dkv = heads(2 * model.kv_heads);
    lse = timer.operands().zeros(f32, {tokens, model.heads});
  }
};

// Query and key pairs of a causal segment.
double causal_pairs(double tokens) { return tokens * (tokens + 1) / 2; }

// Notes after a prefix that they share, by the op's own kernels. Two products forward, five backward.
void time_attention(OpTimer& timer, const ModelConfig& model, int32_t notes, std::vector<BenchRow>& found) {
  const int32_t tokens = prefix_tokens + notes * own_tokens;
  std::vector<AttentionSegment> segments = {{0, prefix_tokens, 0, 0, 0, prefix_tokens}};
  for (int32_t begin = prefix_tokens; begin < tokens; begin += own_tokens)
    segments.push_back({begin, begin + own_tokens, 0, prefix_tokens, begin, begin + own_tokens});
  std::vector<int32_t> query_tokens(tokens);
  std::iota(query_tokens.begin(), query_tokens.end(), 0);
  AttentionPlan plan(segments, query_tokens, tokens);
  if (timer.stream().on_gpu()) plan.set_device_tables(timer.operands().copy_of(plan.tables().span<int32_t>()));
  const AttentionOperands a(timer, model, tokens);
  const Tensor workspace =
      timer.operands().zeros(f32, {std::max<int64_t>(1, attention_workspace(timer.stream(), plan, a.q, a.kv))});
  const double pairs =
                   causal_pairs(prefix_tokens) + notes * (1.0 * own_tokens * prefix_tokens + causal_pairs(own_tokens)),
               product = 2.0 * pairs * model.heads * model.head_dim;
  const std::string shape =
      fmt::format("{} notes of {} tokens after {} that they share", notes, own_tokens, prefix_tokens);
  found.push_back(timer.product_op("attention", timer.compute(), 2 * product,
                                   [&] { attention(timer.stream(), plan, a.q, a.kv, a.o, a.lse); }));
  found.back().shape = shape;
  found.push_back(timer.product_op("attention_backward", timer.compute(), 5 * product, [&] {
    attention_backward(timer.stream(), plan, a.d_o, a.q, a.kv, a.o, a.lse, a.dq, a.dkv, workspace);
  }));
  found.back().shape = shape;
}

// The same notes with the prefix in each, by cuDNN.
void time_cudnn(OpTimer& timer, const ModelConfig& model, int32_t notes, std::vector<BenchRow>& found) {
  if constexpr (cuda_built) {
    const CudnnHeads heads{model.heads, model.kv_heads, model.head_dim};
    const int32_t length = prefix_tokens + own_tokens, tokens = notes * length;
    std::vector<AttentionSegment> segments;
    for (int32_t begin = 0; begin < tokens; begin += length)
      segments.push_back({begin, begin + length, 0, 0, begin, begin + length});
    CudnnSequences sequences;
    sequences.set(segments, tokens, heads);
    sequences.set_device_tables(timer.operands().copy_of(sequences.tables().span<int32_t>()));
    CudnnAttention cudnn(timer.compute(), heads);
    const AttentionOperands a(timer, model, tokens);
    const auto workspace = [&](bool backward) {
      return timer.operands().zeros(f32, {std::max<int64_t>(1, cudnn.workspace(sequences, backward))});
    };
    const Tensor forward_workspace = workspace(false), backward_workspace = workspace(true);
    const double product = 2.0 * notes * causal_pairs(length) * model.heads * model.head_dim;
    const std::string shape = fmt::format("{} notes of {} tokens", notes, length);
    found.push_back(timer.product_op("attention by cuDNN", timer.compute(), 2 * product, [&] {
      cudnn.forward(timer.stream(), sequences, a.q, a.kv, a.o, a.lse, forward_workspace);
    }));
    found.back().shape = shape;
    found.push_back(timer.product_op("attention_backward by cuDNN", timer.compute(), 5 * product, [&] {
      cudnn.backward(timer.stream(), sequences, a.d_o, a.q, a.kv, a.o, a.lse, a.dq, a.dkv, backward_workspace);
    }));
    found.back().shape = shape;
  }
}

// One product forward, three backward, in f32 whatever the model computes in. Each row leaves itself out.
void time_infonce(OpTimer& timer, int64_t rows, int64_t columns, int64_t d, std::vector<BenchRow>& found) {
  Stream& stream = timer.stream();
  Operands& operands = timer.operands();
  std::vector<int32_t> identity(rows + 1);
  std::iota(identity.begin(), identity.end(), 0);
  const Tensor z = operands.random(f32, {columns, d}), norm = operands.zeros(f32, {columns});
  l2_normalize(stream, z, z, norm);
  const Tensor own = z.slice(0, rows), begin = operands.copy_of(identity), mask = begin.slice(0, rows);
  const Tensor lse = operands.zeros(DType::f64, {rows}), positive = operands.zeros(f32, {rows}),
               similarity = operands.zeros(f32, {rows});
  const Tensor d_own = operands.zeros(f32, {rows, d}), dz = operands.zeros(f32, {columns, d}),
               d_tau = operands.zeros(DType::f64, {1});
  const Tensor workspace = operands.zeros(f32, {infonce_workspace(stream.device(), rows, columns, d)});
  const double product = 2.0 * rows * columns * d;
  const std::string shape = fmt::format("{} × {} × {}", rows, columns, d);
  found.push_back(timer.product_op("infonce", f32, product, [&] {
    infonce(stream, own, 0, z, 3, {}, begin, mask, lse, positive, similarity, workspace);
  }));
  found.back().shape = shape;
  found.push_back(timer.product_op("infonce_backward", f32, 3 * product, [&] {
    infonce_backward(stream, own, 0, z, 3, {}, begin, mask, lse, 1e-3f, d_own, dz, d_tau, workspace);
  }));
  found.back().shape = shape;
}

}  // namespace

std::vector<BenchRow> time_product_ops(OpTimer& timer, const RunConfig& config, int64_t rows) {
  const auto notes = static_cast<int32_t>(std::clamp<int64_t>(rows / 8, 1, 256));
  std::vector<BenchRow> found;
  time_attention(timer, config.model, notes, found);
  timer.operands().clear();
  if (config.attention == AttentionKernels::cudnn) time_cudnn(timer, config.model, notes, found);
  timer.operands().clear();
  time_infonce(timer, 2 * rows, 8 * rows, config.model.note_dim, found);
  timer.operands().clear();
  return found;
}

}  // namespace notellm

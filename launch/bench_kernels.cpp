#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/infonce.h"
#include "kernels/note_vector.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "launch/bench.h"
#include "launch/measure.h"
#include "launch/table.h"
#include "model/parameters.h"
#include "model/tiles.h"
#include "runtime/random.h"

namespace notellm {
namespace {

constexpr double measured_seconds = 0.05;  // of each op

class KernelBench {
 public:
  KernelBench(const RunConfig& config, Communicator& ranks)
      : config_(config.model),
        compute_(config.compute()),
        vocabulary_(padded_vocabulary(config.data.tokenizer.vocabulary + 1)),
        ranks_(ranks),
        arena_(int64_t{4} << 30),
        products_("lrrrr"),
        ops_("lrrr"),
        large_ops_("lrrr") {}

  void run() {
    peak_gflops_ = measure_gemm_gflops(ranks_, compute_);
    copy_bandwidth_ = measure_copy_bandwidth(ranks_);
    products();
    memory_ops();
    product_ops();
  }
  void print() const;

 private:
  // A tensor of small random numbers.
  Tensor fill(DType dtype, std::initializer_list<int64_t> sizes);
  Tensor integers(int64_t size, const std::function<int32_t(int64_t)>& value);
  double seconds(const std::function<void()>& work);
  void products();
  void product(const char* name, int64_t in, int64_t out);
  void memory_ops();
  void memory_op(const char* name, double bytes, const std::function<void()>& work);
  void product_ops();
  void product_op(const char* name, double flops, const std::function<void()>& work);
  void attention_ops();

  const ModelConfig config_;
  const DType compute_;
  const int64_t vocabulary_;
  Communicator& ranks_;
  Stream stream_;
  Arena arena_;  // address space, of which little is touched
  double peak_gflops_ = 0, copy_bandwidth_ = 0;
  Table products_, ops_, large_ops_;
};

Tensor KernelBench::fill(DType dtype, std::initializer_list<int64_t> sizes) {
  const Tensor t = arena_.allocate(dtype, sizes);
  for (int64_t i = 0; i < t.size(); ++i) {
    const float value = static_cast<float>(random_unit(1, i, 0) - 0.5);
    if (dtype == DType::bf16)
      t.as<bf16>()[i] = bf16(value);
    else
      t.as<float>()[i] = value;
  }
  return t;
}

Tensor KernelBench::integers(int64_t size, const std::function<int32_t(int64_t)>& value) {
  const Tensor t = arena_.allocate(DType::i32, {size});
  for (int64_t i = 0; i < size; ++i) t.as<int32_t>()[i] = value(i);
  return t;
}

double KernelBench::seconds(const std::function<void()>& work) {
  ranks_.barrier("kernel");
  return ranks_.max("slowest rank", fastest_within(measured_seconds, work));
}

// y = x·Wᵀ on a tile, and the two products of its backward pass.
void KernelBench::product(const char* name, int64_t in, int64_t out) {
  const int64_t mark = arena_.mark(), rows = tile_rows;
  const Tensor x = fill(compute_, {rows, in}), w = fill(compute_, {out, in}), y = fill(compute_, {rows, out});
  const Tensor dw = fill(DType::f32, {out, in});
  const auto share = [&](const std::function<void()>& work) {
    const double gflops = 2.0 * rows * in * out / seconds(work) / 1e9;
    return fmt::format("{:.0f} ({:.0f} %)", gflops, 100 * gflops / peak_gflops_);
  };
  products_.row({name, fmt::format("{} × {} × {}", rows, in, out),
                 share([&] { gemm(stream_, x, Transpose::no, w, Transpose::yes, y); }),
                 share([&] { gemm(stream_, y, Transpose::no, w, Transpose::no, x); }),
                 share([&] { gemm(stream_, y, Transpose::yes, x, Transpose::no, dw, true); })});
  arena_.rewind(mark);
}

void KernelBench::products() {
  products_.row({"product", "rows × in × out", "forward", "to input", "to weights"});
  product("q", config_.dim, config_.q_dim());
  product("k, v", config_.dim, config_.kv_dim());
  product("o", config_.q_dim(), config_.dim);
  product("gate, up", config_.dim, 2 * config_.ffn);
  product("down", config_.ffn, config_.dim);
  product("LM head", config_.dim, vocabulary_);
  product("note vectors", config_.dim, config_.note_dim);
}

// What an op that moves so many bytes must take is a copy of half as many, warm in the caches as the op's own are.
void KernelBench::memory_op(const char* name, double bytes, const std::function<void()>& work) {
  const int64_t mark = arena_.mark(), half = static_cast<int64_t>(bytes / 2);
  const Tensor from = arena_.allocate(DType::bf16, {half / 2}), to = arena_.allocate(DType::bf16, {half / 2});
  const double copy = seconds([&] { copy_memory(to.data, from.data, half); });
  arena_.rewind(mark);
  const double time = seconds(work);
  ops_.row({name, fmt::format("{:.1f} µs", 1e6 * time), fmt::format("{:.1f} GB/s", bytes / time / 1e9),
            fmt::format("{:.2f}", time / copy)});
}

void KernelBench::memory_ops() {
  const int64_t mark = arena_.mark(), rows = tile_rows, dim = config_.dim, ffn = config_.ffn, q_dim = config_.q_dim();
  const int64_t parameters = int64_t{1} << 22;
  const double e = size_of(compute_), tile = e * rows * dim;
  const Tensor x = fill(compute_, {rows, dim}), delta = fill(compute_, {rows, dim}), y = fill(compute_, {rows, dim});
  const Tensor gamma = fill(compute_, {dim}), inv_rms = fill(DType::f32, {rows}), d_gamma = fill(DType::f32, {dim});
  const Tensor gate_up = fill(compute_, {rows, 2 * ffn}), inner = fill(compute_, {rows, ffn}),
               d_gate_up = fill(compute_, {rows, 2 * ffn});
  const Tensor q = fill(compute_, {rows, q_dim}),
               positions = integers(rows, [&](int64_t i) { return int32_t(i % config_.context); });
  const Tensor rope_angles = fill(DType::f32, {config_.context, 2, config_.head_dim / 2});
  const Tensor table = fill(compute_, {vocabulary_, dim}), d_table = fill(DType::f32, {vocabulary_, dim});
  const Tensor tokens = integers(rows, [&](int64_t i) { return int32_t(random_bits(2, i, 0) % vocabulary_); });
  GroupedRows token_rows;
  const Tensor logits = fill(DType::f32, {rows, vocabulary_}), loss = fill(DType::f32, {rows});
  const Tensor d_logits = compute_ == DType::f32 ? logits : fill(compute_, {rows, vocabulary_});
  const Tensor weights = fill(DType::f32, {parameters}), gradient = fill(DType::f32, {parameters});
  const Tensor m = arena_.allocate(DType::f32, {parameters}), v = arena_.allocate(DType::f32, {parameters});
  const Tensor norm_workspace = arena_.allocate(DType::f32, {rms_norm_backward_workspace(rows, dim)});
  const Tensor squares = arena_.allocate(DType::f64, {1}),
               squares_workspace = arena_.allocate(DType::f64, {sum_of_squares_parts});
  const Tensor narrow = compute_ == DType::f32 ? Tensor() : arena_.allocate(compute_, {parameters});

  ops_.row({"op", "time", "moves", "× copy"});
  memory_op("rms_norm, residual added", 4 * tile, [&] { rms_norm(stream_, x, delta, gamma, 1e-5f, x, y, inv_rms); });
  memory_op("rms_norm_backward", 4 * tile,
            [&] { rms_norm_backward(stream_, y, x, gamma, inv_rms, delta, d_gamma, norm_workspace); });
  memory_op("rope", 2 * e * rows * q_dim,
            [&] { rope(stream_, q, positions, rope_angles, config_.heads, config_.head_dim, +1); });
  memory_op("swiglu", 3 * e * rows * ffn, [&] { swiglu(stream_, gate_up, inner); });
  memory_op("swiglu_backward", 6 * e * rows * ffn, [&] { swiglu_backward(stream_, inner, gate_up, d_gate_up, inner); });
  memory_op("embedding", 2 * tile, [&] { embedding(stream_, tokens, table, x); });
  memory_op("embedding, backward", tile + 8.0 * rows * dim, [&] {
    token_rows.set(tokens.span<int32_t>());
    scatter_add_rows(stream_, y, token_rows.view(), d_table);
  });
  memory_op("cross_entropy", (4 + size_of(d_logits.dtype)) * 1.0 * rows * vocabulary_,
            [&] { cross_entropy(stream_, logits, tokens, vocabulary_, 1e-3f, loss, d_logits); });
  memory_op("sum_of_squares", 4.0 * parameters, [&] { sum_of_squares(stream_, gradient, squares, squares_workspace); });
  memory_op("adamw", (28.0 + (narrow.empty() ? 0 : 2)) * parameters, [&] {
    adamw(stream_, {1e-3f, 0.9f, 0.98f, 1e-8f, 0.01f, 1, 1}, gradient, weights, m, v, narrow);
  });
  arena_.rewind(mark);
}

void KernelBench::product_op(const char* name, double flops, const std::function<void()>& work) {
  const double time = seconds(work), gflops = flops / time / 1e9;
  large_ops_.row({name, fmt::format("{:.2f} ms", 1e3 * time), fmt::format("{:.0f}", gflops),
                  fmt::format("{:.0f} %", 100 * gflops / peak_gflops_)});
}

// 64 notes of 96 tokens after a prefix of 32 that they share.
void KernelBench::attention_ops() {
  constexpr int32_t notes = 64, prefix = 32, own = 96, tokens = prefix + notes * own;
  std::vector<AttentionSegment> segments = {{0, prefix, 0, 0, 0, prefix}};
  for (int32_t begin = prefix; begin < tokens; begin += own)
    segments.push_back({begin, begin + own, 0, prefix, begin, begin + own});
  const int64_t heads = config_.heads, kv_heads = config_.kv_heads, d = config_.head_dim;
  const Tensor q = fill(compute_, {tokens, heads, d}), kv = fill(compute_, {tokens, 2 * kv_heads, d});
  const Tensor o = fill(compute_, {tokens, heads, d}), lse = fill(DType::f32, {tokens, heads});
  const Tensor d_o = fill(compute_, {tokens, heads, d}), dq = fill(compute_, {tokens, heads, d}),
               dkv = fill(compute_, {tokens, 2 * kv_heads, d});
  std::vector<int32_t> query_tokens(tokens);
  std::iota(query_tokens.begin(), query_tokens.end(), 0);
  const AttentionPlan plan(segments, query_tokens, tokens);
  const Tensor workspace = fill(DType::f32, {attention_workspace(stream_, plan, q, kv)});
  const double pairs = prefix * (prefix + 1) / 2.0 + notes * (own * prefix + own * (own + 1) / 2.0),
               one = 2.0 * pairs * heads * d;
  product_op("attention", 2 * one, [&] { attention(stream_, plan, q, kv, o, lse); });
  product_op("attention_backward", 5 * one,
             [&] { attention_backward(stream_, plan, d_o, q, kv, o, lse, dq, dkv, workspace); });
}

void KernelBench::product_ops() {
  large_ops_.row({"op", "time", "GFLOP/s", ""});
  const int64_t mark = arena_.mark();
  attention_ops();
  const int64_t rows = 1024, columns = 4096, d = config_.note_dim;
  const Tensor z = fill(DType::f32, {columns, d}), norm = fill(DType::f32, {columns});
  l2_normalize(stream_, z, z, norm);
  const Tensor mask_begin = integers(rows + 1, [](int64_t i) { return int32_t(i); }),
               mask = integers(rows, [](int64_t i) { return int32_t(i); });
  const Tensor lse = arena_.allocate(DType::f64, {rows}), positive = fill(DType::f32, {rows}),
               similarity = fill(DType::f32, {rows});
  const Tensor dz_rows = fill(DType::f32, {rows, d}), dz = fill(DType::f32, {columns, d}),
               d_tau = arena_.allocate(DType::f64, {1});
  const Tensor workspace = arena_.allocate(DType::f32, {infonce_workspace(stream_.device(), rows, columns, d)});
  const double one = 2.0 * rows * columns * d;
  product_op("infonce, 1,024 × 4,096", one, [&] {
    infonce(stream_, z.slice(0, rows), 0, z, 3, {}, mask_begin, mask, lse, positive, similarity, workspace);
  });
  product_op("infonce_backward", 3 * one, [&] {
    infonce_backward(stream_, z.slice(0, rows), 0, z, 3, {}, mask_begin, mask, lse, 1e-3f, dz_rows, dz, d_tau,
                     workspace);
  });
  arena_.rewind(mark);
}

void KernelBench::print() const {
  std::printf("ranks: %d, %s; each rank: %.0f GFLOP/s in a 1024³ product, %.1f GB/s in a copy of memory\n\n",
              ranks_.size(), name_of(compute_), peak_gflops_, copy_bandwidth_ / 1e9);
  std::printf("matrix products of the model on a tile of %lld rows, GFLOP/s (share of the 1024³ product)\n%s\n",
              static_cast<long long>(tile_rows), products_.text(2).c_str());
  std::printf(
      "ops bound by memory, on a tile (sum_of_squares and adamw: 4 Mi parameters); × copy: a copy that moves as much "
      "is 1\n%s\n",
      ops_.text(2).c_str());
  std::printf("ops bound by products, GFLOP/s and share of the 1024³ product (InfoNCE is f32)\n%s",
              large_ops_.text(2).c_str());
}

}  // namespace

void bench_kernels(const RunConfig& config, Communicator& ranks) {
  KernelBench bench(config, ranks);
  bench.run();
  if (ranks.rank() == 0) bench.print();
}

}  // namespace notellm

#include <numeric>

#include "kernels/adamw.h"
#include "kernels/convert.h"
#include "kernels/cross_entropy.h"
#include "kernels/decode_attention.h"
#include "kernels/embedding.h"
#include "kernels/note_vector.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "launch/bench_ops.h"
#include "model/tiles.h"
#include "runtime/random.h"

namespace notellm {
namespace {

constexpr auto f32 = DType::f32;

// Each group gives its operands back before the next: a GPU's memory is no address space.
class MemoryOps {
 public:
  MemoryOps(OpTimer& timer, const RunConfig& config, int64_t vocabulary, int64_t rows)
      : timer_(timer),
        stream_(timer.stream()),
        operands_(timer.operands()),
        model_(config.model),
        device_(config.device),
        vocabulary_(vocabulary),
        rows_(rows),
        compute_(timer.compute()),
        tile_bytes_(static_cast<double>(size_of(compute_)) * rows * model_.dim) {}

  std::vector<BenchRow> run() {
    for (auto group :
         {&MemoryOps::norm, &MemoryOps::rotation, &MemoryOps::gate, &MemoryOps::table_rows, &MemoryOps::rows_by_place,
          &MemoryOps::note_vectors, &MemoryOps::token_loss, &MemoryOps::decoding, &MemoryOps::optimizer}) {
      (this->*group)();
      operands_.clear();
    }
    return std::move(found_);
  }

 private:
  void norm();
  void rotation();
  void gate();
  void table_rows();
  void rows_by_place();
  void note_vectors();
  void token_loss();
  void decoding();
  void optimizer();

  void time(const char* name, std::string shape, double bytes, const OpTimer::Work& work) {
    found_.push_back(timer_.memory_op(name, bytes, work));
    found_.back().shape = std::move(shape);
  }
  std::string by(int64_t columns) const { return fmt::format("{} × {}", rows_, columns); }
  Tensor tile(int64_t columns) { return operands_.random(compute_, {rows_, columns}); }
  std::vector<int32_t> random_tokens(int64_t count) const {
    std::vector<int32_t> tokens(count);
    for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(random_bits(2, i, 0) % vocabulary_);
    return tokens;
  }

  OpTimer& timer_;
  Stream& stream_;
  Operands& operands_;
  const ModelConfig& model_;
  const Device device_;
  const int64_t vocabulary_, rows_;
  const DType compute_;
  const double tile_bytes_;
  std::vector<BenchRow> found_;
};

void MemoryOps::norm() {
  const int64_t dim = model_.dim;
  const Tensor x = tile(dim), delta = tile(dim), y = tile(dim), gamma = operands_.random(compute_, {dim});
  const Tensor inv_rms = operands_.random(f32, {rows_}), d_gamma = operands_.zeros(f32, {dim});
  const Tensor workspace = operands_.zeros(f32, {rms_norm_backward_workspace(rows_, dim)});
  time("rms_norm, residual added", by(dim), 4 * tile_bytes_,
       [&] { rms_norm(stream_, x, delta, gamma, 1e-5f, x, y, inv_rms); });
  time("rms_norm_apply", by(dim), 2 * tile_bytes_, [&] { rms_norm_apply(stream_, x, gamma, inv_rms, y); });
  time("rms_norm_backward", by(dim), 4 * tile_bytes_,
       [&] { rms_norm_backward(stream_, y, x, gamma, inv_rms, delta, d_gamma, workspace); });
}

void MemoryOps::rotation() {
  const int64_t q_dim = model_.q_dim();
  std::vector<int32_t> row_positions(rows_);
  for (int64_t i = 0; i < rows_; ++i) row_positions[i] = static_cast<int32_t>(i % model_.context);
  const Tensor q = tile(q_dim), positions = operands_.copy_of(row_positions),
               angles = operands_.random(f32, {model_.context, 2, model_.head_dim / 2});
  time("rope", by(q_dim), 2.0 * q.bytes(),
       [&] { rope(stream_, q, positions, angles, model_.heads, model_.head_dim, +1); });
}

void MemoryOps::gate() {
  const int64_t ffn = model_.ffn;
  const Tensor gate_up = tile(2 * ffn), inner = tile(ffn), d_gate_up = operands_.zeros(compute_, {rows_, 2 * ffn});
  time("swiglu", by(ffn), 3.0 * inner.bytes(), [&] { swiglu(stream_, gate_up, inner); });
  time("swiglu_backward", by(ffn), 6.0 * inner.bytes(),
       [&] { swiglu_backward(stream_, inner, gate_up, d_gate_up, inner); });
}

// Some tokens come twice: their row of the table is read, or written, once.
void MemoryOps::table_rows() {
  const int64_t dim = model_.dim;
  const std::vector<int32_t> token_list = random_tokens(rows_);
  GroupedRows grouped;
  grouped.set(token_list);
  const RowGroups lists = grouped.view();
  const auto distinct = static_cast<double>(lists.target.rows());
  const Tensor table = operands_.random(compute_, {vocabulary_, dim}),
               d_table = operands_.zeros(f32, {vocabulary_, dim});
  const Tensor tokens = operands_.copy_of(token_list), x = tile(dim);
  const RowGroups groups = {operands_.copy_of(lists.target.span<int32_t>()),
                            operands_.copy_of(lists.begin.span<int32_t>()),
                            operands_.copy_of(lists.rows.span<int32_t>())};
  time("embedding", by(dim), tile_bytes_ + distinct * size_of(compute_) * dim,
       [&] { embedding(stream_, tokens, table, x); });
  time("scatter_add_rows, to the table", by(dim), tile_bytes_ + distinct * 8 * dim,
       [&] { scatter_add_rows(stream_, x, groups, d_table); });
}

void MemoryOps::rows_by_place() {
  const int64_t dim = model_.dim;
  std::vector<int32_t> order(rows_);
  std::iota(order.begin(), order.end(), 0);
  const Tensor x = tile(dim), y = tile(dim), places = operands_.copy_of(order),
               wide = operands_.random(f32, {rows_, dim});
  time("gather_rows", by(dim), 2 * tile_bytes_, [&] { gather_rows(stream_, x, places, y); });
  time("scatter_add_rows, by place", by(dim), 3 * tile_bytes_, [&] {
    scatter_add_rows(stream_, y, {places, {}, {}}, x);
  });
  time("convert, f32 to bf16", by(dim), 6.0 * rows_ * dim,
       [&, narrow = operands_.zeros(DType::bf16, {rows_, dim})] { convert(stream_, wide, narrow); });
}

void MemoryOps::note_vectors() {
  const int64_t d = model_.note_dim;
  const Tensor v = operands_.random(f32, {rows_, d}), z = operands_.zeros(f32, {rows_, d}),
               norm = operands_.zeros(f32, {rows_});
  time("l2_normalize", by(d), 2.0 * v.bytes(), [&] { l2_normalize(stream_, v, z, norm); });
  time("l2_normalize_backward", by(d), 3.0 * v.bytes(), [&] { l2_normalize_backward(stream_, v, z, norm, v); });
}

void MemoryOps::token_loss() {
  const int64_t rows = std::min(rows_, logit_rows(device_, vocabulary_));
  const Tensor logits = operands_.random(f32, {rows, vocabulary_}), loss = operands_.zeros(f32, {rows});
  const Tensor d_logits = compute_ == f32 ? logits : operands_.zeros(compute_, {rows, vocabulary_});
  const Tensor labels = operands_.copy_of(random_tokens(rows));
  time("cross_entropy", fmt::format("{} × {}", rows, vocabulary_),
       static_cast<double>(logits.bytes() + d_logits.bytes()),
       [&] { cross_entropy(stream_, logits, labels, vocabulary_, 1e-3f, loss, d_logits); });
}

// As many sequences of 128 tokens as the cache's rows hold; each gets one more.
void MemoryOps::decoding() {
  constexpr int32_t keys = 128;
  const auto sequences = static_cast<int32_t>(std::max<int64_t>(1, rows_ / keys));
  std::vector<int32_t> run_list, place_list;
  for (int32_t i = 0; i < sequences; ++i) {
    run_list.insert(run_list.end(), {i * keys, (i + 1) * keys - 1});
    place_list.push_back((i + 1) * keys - 1);
  }
  const int64_t kv_heads = 2 * model_.kv_heads, head_dim = model_.head_dim;
  const Tensor cache = operands_.random(compute_, {int64_t{sequences} * keys, kv_heads, head_dim}),
               kv = operands_.random(compute_, {sequences, kv_heads, head_dim}),
               q = operands_.random(compute_, {sequences, model_.heads, head_dim}),
               runs = operands_.copy_of(run_list).reshape({sequences, 1, 2}), place = operands_.copy_of(place_list);
  time("decode_attention", fmt::format("{} × {} keys", sequences, keys),
       static_cast<double>(cache.bytes() + 2 * q.bytes()),
       [&] { decode_attention(stream_, q, kv, cache, runs, place, q); });
}

void MemoryOps::optimizer() {
  const int64_t parameters = rows_ * 8192;
  const auto zeros = [&](DType dtype, int64_t size) { return operands_.zeros(dtype, {size}); };
  const Tensor weights = operands_.random(f32, {parameters}), gradient = operands_.random(f32, {parameters});
  const Tensor m = zeros(f32, parameters), v = zeros(f32, parameters);
  const Tensor narrow = compute_ == f32 ? Tensor() : zeros(compute_, parameters);
  const Tensor sum = zeros(DType::f64, 1), workspace = zeros(DType::f64, sum_of_squares_parts);
  const std::string shape = fmt::format("{} parameters", parameters);
  time("sum_of_squares", shape, static_cast<double>(gradient.bytes()),
       [&] { sum_of_squares(stream_, gradient, sum, workspace); });
  time("adamw", shape, 7.0 * weights.bytes() + (narrow.empty() ? 0 : narrow.bytes()), [&] {
    adamw(stream_, {1e-3f, 0.9f, 0.98f, 1e-8f, 0.01f, 1, 1}, gradient, weights, m, v, narrow);
  });
}

}  // namespace

std::vector<BenchRow> time_memory_ops(OpTimer& timer, const RunConfig& config, int64_t vocabulary, int64_t rows) {
  return MemoryOps(timer, config, vocabulary, rows).run();
}

}  // namespace notellm

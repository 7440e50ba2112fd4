// The memory-bound ops, on a tile of 512 rows that lies in L2 and on one far larger than the caches: bytes that must
// move per second, and as a share of what copying the same number of bytes reaches, measured in turns in the same run.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/checks.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/note_vector.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "runtime/memory.h"

using namespace notellm;

namespace {

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Reads and writes `bytes` in all.
void copy(const Buffer& from, const Buffer& to, int64_t bytes) {
  constexpr int64_t piece = 1 << 16;
  const int64_t half = bytes / 2;
#pragma omp parallel for if (half > 4 * parallel_elements)
  for (int64_t at = 0; at < half; at += piece)
    std::memcpy(static_cast<char*>(to.data()) + at, static_cast<const char*>(from.data()) + at,
                std::min(piece, half - at));
}

void measure(benchmark::State& state, int64_t bytes, const auto& op) {
  const Buffer from(bytes / 2 + 1), to(bytes / 2 + 1);
  std::memset(from.data(), 1, static_cast<size_t>(bytes / 2));
  copy(from, to, bytes);
  op();
  double best_op = 1e9, best_copy = 1e9;
  for (auto _ : state) {
    const double seconds = seconds_of(op);
    state.SetIterationTime(seconds);
    best_op = std::min(best_op, seconds);
    best_copy = std::min(best_copy, seconds_of([&] { copy(from, to, bytes); }));
  }
  state.counters["GB/s"] = static_cast<double>(bytes) / best_op / 1e9;
  state.counters["of_memcpy"] = best_copy / best_op;
}

// A tensor of small random numbers (i32: below `below`) in memory of its own.
struct Data {
  Buffer buffer;
  Tensor t;
  Data(DType dtype, int64_t rows, int64_t cols, int32_t below = 1)
      : buffer(std::max<int64_t>(1, rows * cols * size_of(dtype))), t(buffer.tensor(dtype, {rows, cols})) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < t.size(); ++i) {
      const float value = static_cast<float>(random() % 2001) * 1e-3f - 1.0f;
      if (dtype == DType::f32) t.as<float>()[i] = value;
      if (dtype == DType::bf16) t.as<bf16>()[i] = bf16(value);
      if (dtype == DType::i32) t.as<int32_t>()[i] = static_cast<int32_t>(random() % static_cast<unsigned>(below));
    }
  }
  Tensor flat() const { return t.reshape({t.size()}); }
};

Stream stream;

DType dtype_of(const benchmark::State& state) { return state.range(0) ? DType::bf16 : DType::f32; }

void rms_norm_forward(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const DType dtype = dtype_of(state);
  const Data x(dtype, rows, cols), delta(dtype, rows, cols), gamma(dtype, cols, 1), y(dtype, rows, cols),
      inverse(DType::f32, rows, 1);
  measure(state, 4 * x.t.bytes(), [&] { rms_norm(stream, x.t, delta.t, gamma.t, 1e-5f, delta.t, y.t, inverse.t); });
}

void rms_norm_gradient(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const DType dtype = dtype_of(state);
  const Data x(dtype, rows, cols), dy(dtype, rows, cols), gamma(dtype, cols, 1), dx(dtype, rows, cols),
      inverse(DType::f32, rows, 1);
  const Data dgamma(DType::f32, cols, 1), workspace(DType::f32, rms_norm_backward_workspace(rows, cols), 1);
  measure(state, 4 * x.t.bytes(),
          [&] { rms_norm_backward(stream, dy.t, x.t, gamma.t, inverse.t, dx.t, dgamma.t, workspace.t); });
}

void rope_rotation(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data x(dtype_of(state), rows, cols), positions(DType::i32, rows, 1, 150), table(DType::f32, 150, 64);
  rope_table(rope_frequencies(10000.0f, 64), table.t);
  measure(state, 2 * x.t.bytes(), [&] { rope(stream, x.t, positions.t, table.t, cols / 64, 64, 1); });
}

void swiglu_forward(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data gate_up(dtype_of(state), rows, 2 * cols), y(dtype_of(state), rows, cols);
  measure(state, 3 * y.t.bytes(), [&] { swiglu(stream, gate_up.t, y.t); });
}

void swiglu_gradient(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data gate_up(dtype_of(state), rows, 2 * cols), d(dtype_of(state), rows, 2 * cols),
      dy(dtype_of(state), rows, cols), y(dtype_of(state), rows, cols);
  measure(state, 6 * dy.t.bytes(), [&] { swiglu_backward(stream, dy.t, gate_up.t, d.t, y.t); });
}

void embedding_lookup(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data table(dtype_of(state), 8192, cols), tokens(DType::i32, rows, 1, 8192), x(dtype_of(state), rows, cols);
  measure(state, 2 * x.t.bytes(), [&] { embedding(stream, tokens.t, table.t, x.t); });
}

void embedding_gradient(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data table(DType::f32, 8192, cols), tokens(DType::i32, rows, 1, 8192), dx(dtype_of(state), rows, cols);
  GroupedRows groups;
  measure(state, dx.t.bytes() + 2 * rows * cols * 4, [&] {
    groups.set(tokens.t.span<int32_t>());
    scatter_add_rows(stream, dx.t, groups.view(), table.t);
  });
}

void cross_entropy_both(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data logits(DType::f32, rows, cols), labels(DType::i32, rows, 1, static_cast<int32_t>(cols)),
      loss(DType::f32, rows, 1);
  const Data d(dtype_of(state), rows, cols);
  measure(state, logits.t.bytes() + d.t.bytes(),
          [&] { cross_entropy(stream, logits.t, labels.t, cols, 1.0f, loss.t, d.t); });
}

void note_vector_both(benchmark::State& state) {
  const int64_t rows = state.range(1), cols = state.range(2);
  const Data v(DType::f32, rows, cols), z(DType::f32, rows, cols), dz(DType::f32, rows, cols),
      norm(DType::f32, rows, 1);
  measure(state, 5 * v.t.bytes(), [&] {
    l2_normalize(stream, v.t, z.t, norm.t);
    l2_normalize_backward(stream, dz.t, z.t, norm.t, dz.t);
  });
}

void adamw_step(benchmark::State& state) {
  const int64_t n = state.range(1) * state.range(2);
  const Data g(DType::f32, n, 1), w(DType::f32, n, 1), m(DType::f32, n, 1), compute(DType::bf16, n, 1);
  Data v(DType::f32, n, 1);
  for (int64_t i = 0; i < n; ++i) v.t.as<float>()[i] = 1.0f;
  const AdamWStep step{.learning_rate = 1e-3f,
                       .beta1 = 0.9f,
                       .beta2 = 0.98f,
                       .eps = 1e-8f,
                       .weight_decay = 0.01f,
                       .gradient_scale = 1,
                       .step = 9};
  measure(state, n * (7 * 4 + 2), [&] { adamw(stream, step, g.flat(), w.flat(), m.flat(), v.flat(), compute.flat()); });
}

void squares(benchmark::State& state) {
  const Data x(DType::f32, state.range(1), state.range(2));
  const Data result(DType::f64, 1, 1), workspace(DType::f64, sum_of_squares_parts, 1);
  measure(state, x.t.bytes(), [&] { sum_of_squares(stream, x.t, result.t, workspace.t); });
}

// {bf16, rows, columns}: in L2, and large.
void tiles(benchmark::internal::Benchmark* b) {
  for (int64_t half : {0, 1}) b->Args({half, 512, 192})->Args({half, 512, 512})->Args({half, 65536, 512});
  b->UseManualTime()->MinTime(0.2);
}
void logits(benchmark::internal::Benchmark* b) {
  for (int64_t half : {0, 1}) b->Args({half, 32, 8192})->Args({half, 512, 8192})->Args({half, 512, 32000});
  b->UseManualTime()->MinTime(0.2);
}
void f32_only(benchmark::internal::Benchmark* b) {
  b->Args({0, 512, 128})->Args({0, 65536, 128})->UseManualTime()->MinTime(0.2);
}

BENCHMARK(rms_norm_forward)->Apply(tiles);
BENCHMARK(rms_norm_gradient)->Apply(tiles);
BENCHMARK(rope_rotation)->Apply(tiles);
BENCHMARK(swiglu_forward)->Apply(tiles);
BENCHMARK(swiglu_gradient)->Apply(tiles);
BENCHMARK(embedding_lookup)->Apply(tiles);
BENCHMARK(embedding_gradient)->Apply(tiles);
BENCHMARK(cross_entropy_both)->Apply(logits);
BENCHMARK(note_vector_both)->Apply(f32_only);
BENCHMARK(adamw_step)->Apply(f32_only);
BENCHMARK(squares)->Apply(f32_only);

}  // namespace

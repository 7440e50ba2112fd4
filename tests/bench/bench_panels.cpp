// bf16 products of a decoder's shapes on a CPU where panels_pay(): as gemm() does them with weights as they are, and
// with weights in panels (kernels/gemm_panels.h); FLOP/s. "turn": into panels, bytes/s of the matrix.
#include <benchmark/benchmark.h>

#include <vector>

#include "kernels/gemm.h"
#include "kernels/gemm_panels.h"
#include "runtime/memory.h"

using namespace notellm;

namespace {

struct Product {
  explicit Product(const benchmark::State& state)
      : m(state.range(0)), k(state.range(1)), n(state.range(2)), a(numbers(m * k)), b(numbers(n * k)), c(m * n) {}
  static std::vector<bf16> numbers(int64_t count) {
    std::vector<bf16> all;
    for (int64_t i = 0; i < count; ++i) all.emplace_back(static_cast<float>(i % 17 - 8));
    return all;
  }
  Tensor weights() const { return Tensor::of(b.data(), {n, k}); }
  void run(benchmark::State& state, const Tensor& by) {
    Stream stream;
    for (auto _ : state)
      gemm(stream, Tensor::of(a.data(), {m, k}), Transpose::no, by, Transpose::yes, Tensor::of(c.data(), {m, n}));
    state.counters["FLOP/s"] =
        benchmark::Counter(static_cast<double>(2 * m * k * n), benchmark::Counter::kIsIterationInvariantRate);
  }

  int64_t m, k, n;
  std::vector<bf16> a, b, c;
};

void as_they_are(benchmark::State& state) {
  Product p(state);
  p.run(state, p.weights());
}

void in_panels(benchmark::State& state) {
  Product p(state);
  Buffer memory(panel_bytes(p.weights()));
  p.run(state, to_panels(p.weights(), memory.data()));
}

void turn(benchmark::State& state) {
  Product p(state);
  Buffer memory(panel_bytes(p.weights()));
  for (auto _ : state) to_panels(p.weights(), memory.data());
  state.SetBytesProcessed(state.iterations() * p.weights().bytes());
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "k", "n"})->UseRealTime();
  for (const int64_t m : {1, 32, 1024})
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{512, 2816}, {1408, 512}}) b->Args({m, k, n});
}
BENCHMARK(as_they_are)->Apply(shapes);
BENCHMARK(in_panels)->Apply(shapes);
BENCHMARK(turn)->Args({1, 512, 2816})->UseRealTime();

}  // namespace

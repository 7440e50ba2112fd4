// Exact search at the size of the real data set: 35,000 questions about 7,000 notes in a pool of 20,500.
#include <benchmark/benchmark.h>

#include "evaluation/ranking.h"
#include "runtime/random.h"

namespace notellm {
namespace {

void bm_rank_targets(benchmark::State& state) {
  const int64_t rows = 20500, d = 128;
  std::vector<float> pool(rows * d);
  for (int64_t i = 0; i < rows * d; ++i) pool[i] = static_cast<float>(random_unit(1, i, 0) - 0.5);
  std::vector<Question> questions;
  for (int32_t i = 0; i < 35000; ++i) {
    const int32_t query = i % 7000;
    questions.push_back({query, 7000 + static_cast<int32_t>(random_bits(2, i, 0) % 13500)});
  }
  Stream stream;
  Communicator self = Communicator::self();
  for (auto _ : state)
    benchmark::DoNotOptimize(rank_targets(stream, self, Tensor::of(pool.data(), {rows, d}), questions));
  state.counters["questions/s"] =
      benchmark::Counter(static_cast<double>(questions.size()), benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(bm_rank_targets)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace notellm

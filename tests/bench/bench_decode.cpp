// Greedy decoding by a model of random weights in bf16: bench_decode [NOTES …] (1 and 32)
//
// dim 512 × 8 layers, a vocabulary of 8,192, prompts of 140 tokens that share nothing, 64 new tokens: what
// decode_transformers.py does. Prints tokens/s of everything, of the steps alone, and at how many bytes/s a step reads
// weights and cache. The median of several runs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/convert.h"
#include "model/generator.h"
#include "runtime/random.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

constexpr int64_t vocabulary = 8192;
constexpr int32_t prompt_tokens = 140, new_tokens = 64;

ModelConfig bench_config() {
  ModelConfig c;
  c.dim = 512;
  c.layers = c.heads = c.kv_heads = 8;
  c.ffn = 1408;
  c.context = 256;
  c.finish();
  return c;
}

PackedBatch prompts(int32_t notes) {
  PackedBatch b;
  for (int32_t i = 0; i < notes; ++i) {
    for (int32_t t = 0; t < prompt_tokens; ++t) {
      b.tokens.push_back(static_cast<int32_t>(random_bits(1, i, t) % vocabulary));
      b.positions.push_back(t);
    }
    b.segments.push_back({i * prompt_tokens, (i + 1) * prompt_tokens, -1});
    b.label_rows.push_back((i + 1) * prompt_tokens - 1);
    b.labels.push_back(0);
    b.note_ids.push_back(i);
  }
  b.note_rows = b.label_rows;
  return b;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

// Seconds of `new_tokens` tokens each, and of one each, which is the prompts alone.
void measure(const ParameterLayout& layout, const Weights& weights, int32_t notes) {
  const ModelConfig config = bench_config();
  const PackedBatch batch = prompts(notes);
  Stream stream;
  const auto seconds = [&](int tokens) {
    Generator generator(config, DType::bf16, {.max_tokens = tokens, .sampling = {}});
    std::vector<double> times;
    for (int run = 0; run < 6; ++run) {
      const Stopwatch watch;
      generator.run(stream, weights, batch, {-1, vocabulary});
      if (run > 0) times.push_back(watch.seconds());
    }
    return median(times);
  };
  const double all = seconds(new_tokens), first = seconds(1), step = (all - first) / (new_tokens - 1);
  const double cache = double(notes) * (prompt_tokens + new_tokens / 2) * config.kv_dim() * 2 * config.layers;
  std::printf(
      "notellm       bf16  %2d notes  %7.0f tokens/s  steps alone %7.0f tokens/s, %.2f ms, %.1f GB/s  prompts %.1f "
      "ms\n",
      notes, notes * new_tokens / all, notes / step, 1e3 * step, (2e-9 * layout.size() + 1e-9 * cache) / step,
      1e3 * first);
}

int run(const std::vector<int32_t>& sizes) {
  const ParameterLayout layout(bench_config(), vocabulary);
  Buffer memory(layout.size() * 2);
  const Tensor flat = memory.tensor(DType::bf16, {layout.size()});
  Stream stream;
  initialize(layout, {}, 1, vocabulary, vocabulary - 1,
             [&](const Parameter& p, Tensor values) { convert(stream, values, p.view(flat)); });
  const Weights weights(layout, flat);
  for (const int32_t notes : sizes) measure(layout, weights, notes);
  return 0;
}

}  // namespace
}  // namespace notellm

int main(int argc, char** argv) {
  std::vector<int32_t> sizes;
  for (int i = 1; i < argc; ++i) sizes.push_back(std::atoi(argv[i]));
  return notellm::run(sizes.empty() ? std::vector<int32_t>{1, 32} : sizes);
}

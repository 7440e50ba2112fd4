// What the training thread pays for its data at each step: 512 notes of about 120 tokens.
#include <benchmark/benchmark.h>

#include "data_pipeline/batch.h"
#include "data_pipeline/sampler.h"

namespace notellm {
namespace {

constexpr int notes_count = 20000, pairs_per_step = 256;

std::vector<int32_t> tokens(uint64_t seed, uint64_t stream, int count) {
  std::vector<int32_t> result(count);
  for (int i = 0; i < count; ++i) result[i] = 4 + static_cast<int32_t>(random_bits(seed, stream, i) % 8000);
  return result;
}

struct Data {
  NoteTable notes;
  PairTable pairs;

  Data() {
    PromptTokens& prompt = notes.prompt;
    prompt.emb = 3;
    prompt.eos = 2;
    prompt.category_instruction = tokens(1, 0, 28);
    prompt.category_guidance = tokens(2, 0, 6);
    for (int j = 0; j < 3; ++j) {
      prompt.hashtag_instruction.push_back(tokens(3, j, 28));
      prompt.hashtag_guidance.push_back(tokens(4, j, 6));
    }
    for (int note = 0; note < notes_count; ++note) {
      notes.ids.push_back(std::to_string(note));
      const int length = 60 + static_cast<int>(random_bits(5, note, 0) % 40);
      notes.category_input.push_back(tokens(6, note, length));
      notes.hashtag_input.push_back(tokens(7, note, length));
      notes.category.push_back(tokens(8, note, 3));
      for (int tag = 0; tag < 3; ++tag) {
        notes.hashtag_inner.push_back(tokens(9, 3 * note + tag, 4));
        notes.hashtag_last.push_back(tokens(10, 3 * note + tag, 3));
      }
      notes.hashtag_begin.push_back(notes.hashtag_begin.back() + 3);
    }
    for (int i = 0; i < 100000; ++i)
      pairs.train.push_back({static_cast<int32_t>(random_bits(11, i, 0) % notes_count),
                             static_cast<int32_t>(random_bits(11, i, 1) % notes_count), 1.0f});
  }
};

const Data& data() {
  static const Data instance;
  return instance;
}

std::vector<NoteExample> step_examples(const Sampler& sampler, int64_t step) {
  std::vector<NoteExample> examples;
  for (int64_t i = 0; i < pairs_per_step; ++i) {
    Sampler::Slot slot = sampler.slot(step, i);
    examples.push_back(std::move(slot.query));
    examples.push_back(std::move(slot.target));
  }
  return examples;
}

void bm_slots(benchmark::State& state) {
  const Sampler sampler(data().notes, data().pairs, pairs_per_step, {});
  int64_t step = 0;
  for (auto _ : state) benchmark::DoNotOptimize(step_examples(sampler, step++));
}
BENCHMARK(bm_slots)->Unit(benchmark::kMicrosecond);

// Other notes at every step, as in training, so that the table is not warm in the cache.
void bm_pack(benchmark::State& state) {
  const Sampler sampler(data().notes, data().pairs, pairs_per_step, {});
  std::vector<std::vector<NoteExample>> steps;
  for (int64_t step = 0; step < 32; ++step) steps.push_back(step_examples(sampler, step));
  PackedBatch batch;
  size_t step = 0;
  int64_t packed = 0;
  for (auto _ : state) {
    pack(data().notes, steps[step++ % steps.size()], state.range(0) != 0, batch);
    packed += batch.unshared_tokens;
    benchmark::DoNotOptimize(batch.tokens.data());
  }
  state.counters["tokens"] = benchmark::Counter(static_cast<double>(packed), benchmark::Counter::kAvgIterations);
}
BENCHMARK(bm_pack)->ArgName("share_prefix")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void bm_balance(benchmark::State& state) {
  std::vector<int64_t> lengths(pairs_per_step);
  for (int i = 0; i < pairs_per_step; ++i) lengths[i] = 100 + static_cast<int64_t>(random_bits(12, i, 0) % 200);
  for (auto _ : state) benchmark::DoNotOptimize(balance(lengths, 4, 4));
}
BENCHMARK(bm_balance)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace notellm

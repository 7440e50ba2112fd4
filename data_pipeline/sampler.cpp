#include "data_pipeline/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <tuple>

#include "runtime/error.h"

namespace notellm {
namespace {

// What a derived key is for; no two uses of random numbers share a key.
enum KeyUse : uint64_t { epoch_order, task_choice, topic_count, topic_choice };

int64_t random_below(int64_t n, uint64_t key, uint64_t counter_a, uint64_t counter_b) {
  return static_cast<int64_t>(random_unit(key, counter_a, counter_b) * static_cast<double>(n));
}

// A uniformly drawn subset of `count` of the numbers 0 .. n-1, ascending: selection sampling (Knuth, TAOCP 2, 3.4.2 S).
// A note's hashtags keep their order, so that the model is not asked to guess one.
std::vector<int32_t> random_subset(int64_t n, int64_t count, uint64_t key, uint64_t place) {
  std::vector<int32_t> chosen;
  chosen.reserve(count);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t missing = count - static_cast<int64_t>(chosen.size());
    if (random_below(n - i, key, place, i) < missing) chosen.push_back(static_cast<int32_t>(i));
  }
  return chosen;
}

NoteExample example_of(const NoteTable& notes, int32_t note, const SamplerConfig& config, uint64_t place) {
  const auto key = [&](KeyUse use) { return random_bits(config.seed, use, 0); };
  const int64_t hashtags = notes.hashtags(note);
  const bool category = !notes.category[note].empty();
  if (hashtags == 0) return {note, Task::category, {}, category ? config.until : Until::note};
  if (category && random_unit(key(task_choice), place, 0) >= config.hashtag_share)
    return {note, Task::category, {}, config.until};
  const int64_t most = std::min(hashtags, notes.prompt.hashtag_instruction.size());
  const int64_t count = config.random_topics ? 1 + random_below(most, key(topic_count), place, 0) : 1;
  return {note, Task::hashtags, random_subset(hashtags, count, key(topic_choice), place), config.until};
}

}  // namespace

Sampler::Sampler(const NoteTable& notes, const PairTable& pairs, int64_t pairs_per_step, SamplerConfig config)
    : notes_(notes), pairs_(pairs), pairs_per_step_(pairs_per_step), config_(config) {
  NOTELLM_CHECK(pairs_per_step > 0, "{} pairs per step", pairs_per_step);
  if (pairs_per_epoch() < pairs_per_step)
    fail(ErrorKind::data,
         "{} training pairs are fewer than the {} of one step: lower train.pairs_per_step, or prepare more clicks",
         pairs_per_epoch(), pairs_per_step);
  std::vector<int64_t> places(notes.size(), 0);
  for (const Pair& pair : pairs.train) {
    ++places[pair.query];
    ++places[pair.target];
  }
  const double all_places = 2.0 * static_cast<double>(pairs_per_epoch());
  log_probability_.reserve(places.size());
  for (int64_t count : places) log_probability_.push_back(static_cast<float>(std::log(count / all_places)));
}

int64_t Sampler::pairs_per_epoch() const { return static_cast<int64_t>(pairs_.train.size()); }

Sampler::Slot Sampler::slot(int64_t step, int64_t slot) const {
  NOTELLM_CHECK(step >= 0 && slot >= 0 && slot < pairs_per_step_, "slot {} of {} of step {}", slot, pairs_per_step_,
                step);
  const uint64_t place = static_cast<uint64_t>(step) * pairs_per_step_ + slot;
  const uint64_t epoch_pairs = pairs_.train.size();
  const uint64_t epoch_key = random_bits(config_.seed, epoch_order, place / epoch_pairs);
  const Pair& pair = pairs_.train[permute(epoch_key, epoch_pairs, place % epoch_pairs)];
  return {example_of(notes_, pair.query, config_, 2 * place), example_of(notes_, pair.target, config_, 2 * place + 1)};
}

std::vector<std::vector<std::vector<int32_t>>> balance(const std::vector<int64_t>& tokens, int ranks,
                                                       int micro_batches) {
  NOTELLM_CHECK(ranks > 0 && micro_batches > 0, "{} ranks, {} micro-batches", ranks, micro_batches);
  const int64_t slots = static_cast<int64_t>(tokens.size()), lists = int64_t{ranks} * micro_batches;
  const int64_t room = (slots + lists - 1) / lists;
  std::vector<int32_t> longest_first(slots);
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](int32_t a, int32_t b) { return tokens[a] > tokens[b]; });

  // Tokens, slots, list. List k is micro-batch k / ranks of rank k % ranks: too few slots for all lists still give
  // every rank some.
  using Load = std::tuple<int64_t, int64_t, int64_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least_loaded;
  for (int64_t list = 0; list < lists; ++list) least_loaded.emplace(0, 0, list);
  std::vector<std::vector<std::vector<int32_t>>> result(ranks, std::vector<std::vector<int32_t>>(micro_batches));
  for (int32_t slot : longest_first) {
    const auto [load, count, list] = least_loaded.top();
    least_loaded.pop();
    result[list % ranks][list / ranks].push_back(slot);
    if (count + 1 < room) least_loaded.emplace(load + tokens[slot], count + 1, list);
  }
  for (auto& of_rank : result)
    for (auto& list : of_rank) std::sort(list.begin(), list.end());
  return result;
}

}  // namespace notellm

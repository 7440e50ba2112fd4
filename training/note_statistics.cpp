#include "training/note_statistics.h"

#include <algorithm>
#include <cmath>

namespace notellm {
namespace {

constexpr int64_t sampled_pairs = 512;

}  // namespace

BatchCounts NoteStatistics::expected(int64_t notes) const {
  // A beginning is shared by two notes at least.
  const bool shares = prefixes > 0 && notes >= 2 * prefixes;
  const BatchCounts& from = shares ? shared : unshared;
  const int64_t prefix = shares ? prefix_tokens : 0;
  const double times = static_cast<double>(notes) / static_cast<double>(from.notes);
  const auto scaled = [&](int64_t n) { return std::llround(times * static_cast<double>(n)); };
  return {.notes = notes,
          .labels = scaled(from.labels),
          .tokens = scaled(from.tokens - prefix) + prefix,
          .unshared_tokens = scaled(from.unshared_tokens),
          .read_rows = scaled(from.read_rows),
          .keys = times * (from.keys - (shares ? prefix_keys : 0)) + (shares ? prefix_keys : 0),
          .read_keys = times * from.read_keys,
          .note_keys = times * from.note_keys};
}

NoteStatistics note_statistics(const RunConfig& config, const NoteTable& notes, const PairTable& pairs) {
  if (pairs.train.empty()) fail(ErrorKind::data, "there is no training pair: a plan needs some notes to look at");
  const int64_t slots = std::min(sampled_pairs, std::ssize(pairs.train));
  const Sampler sampler(notes, pairs, slots, sampler_config(config));
  std::vector<NoteExample> examples;
  for (int64_t i = 0; i < slots; ++i) {
    const Sampler::Slot slot = sampler.slot(0, i);
    examples.push_back(slot.query);
    examples.push_back(slot.target);
  }
  NoteStatistics statistics;
  statistics.vocabulary = padded_vocabulary(notes.prompt.vocabulary);
  statistics.longest = longest_sequence(config, notes);
  PackedBatch batch;
  pack(notes, examples, false, batch);
  statistics.unshared = count(batch);
  pack(notes, examples, config.train.share_prefix, batch);
  statistics.shared = count(batch);
  for (const Segment& segment : batch.segments) {
    const bool is_prefix =
        std::ranges::none_of(batch.note_rows, [&](int32_t row) { return segment.begin <= row && row < segment.end; });
    if (!is_prefix) continue;
    const int64_t tokens = segment.end - segment.begin;
    ++statistics.prefixes;
    statistics.prefix_tokens += tokens;
    statistics.prefix_keys += 0.5 * static_cast<double>(tokens * (tokens + 1));
  }
  return statistics;
}

}  // namespace notellm

#include "evaluation/slices.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

namespace notellm {
namespace {

uint64_t key_of(const Pair& pair) {
  return uint64_t{static_cast<uint32_t>(pair.query)} << 32 | static_cast<uint32_t>(pair.target);
}

// The upper one of two medians.
int64_t median_target_clicks(const NoteTable& notes, std::span<const Pair> test) {
  std::vector<int64_t> clicks;
  for (const Pair& pair : test) clicks.push_back(notes.clicks[pair.target]);
  if (clicks.empty()) return 0;
  const auto middle = clicks.begin() + clicks.size() / 2;
  std::nth_element(clicks.begin(), middle, clicks.end());
  return *middle;
}

template <class Belongs>
Slice slice_of(std::string name, std::span<const Pair> test, Belongs belongs) {
  Slice slice{std::move(name), {}};
  slice.mask.reserve(test.size());
  for (const Pair& pair : test) slice.mask.push_back(belongs(pair));
  return slice;
}

}  // namespace

std::vector<Slice> make_slices(const NoteTable& notes, std::span<const Pair> train, std::span<const Pair> test,
                               int64_t exposure_bound) {
  std::unordered_set<uint64_t> known;
  known.reserve(train.size());
  for (const Pair& pair : train) known.insert(key_of(pair));
  const int64_t bound = exposure_bound > 0 ? exposure_bound : median_target_clicks(notes, test);

  const auto seen = [&](const Pair& pair) { return known.contains(key_of(pair)); };
  const auto cold = [&](const Pair& pair) { return notes.clicks[pair.query] == 0 || notes.clicks[pair.target] == 0; };
  const auto low = [&](const Pair& pair) { return notes.clicks[pair.target] < bound; };
  return {
      slice_of("all", test, [](const Pair&) { return true; }),
      slice_of("seen", test, seen),
      slice_of("unseen", test, [&](const Pair& pair) { return !seen(pair); }),
      slice_of("cold", test, cold),
      slice_of(fmt::format("low exposure (< {} clicks)", bound), test, low),
      slice_of(fmt::format("high exposure (≥ {} clicks)", bound), test, [&](const Pair& pair) { return !low(pair); }),
  };
}

}  // namespace notellm

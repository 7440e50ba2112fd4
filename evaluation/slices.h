// Parts of the test pairs that are looked at by themselves.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/note_table.h"

namespace notellm {

struct Slice {
  std::string name;
  std::vector<uint8_t> mask;  // [test] 1: the pair belongs to it
};

// all            every pair
// seen, unseen   the ordered pair (query, target) is a training pair, or not
// cold           query or target was clicked by no training user
// low, high      exposure of the target: its training clicks are below `exposure_bound`, or at or above it.
//                exposure_bound 0: the median of the targets' training clicks, over the test pairs, so that about half
//                of the pairs is in each, whatever the size of the log
// The bound that was used is in the names: "low exposure (< 25 clicks)".
std::vector<Slice> make_slices(const NoteTable& notes, std::span<const Pair> train, std::span<const Pair> test,
                               int64_t exposure_bound);

}  // namespace notellm

// Which columns of the similarity matrix a row leaves out: no note is its own negative, nor is one that users are known
// to click together with it.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "runtime/tensor.h"

namespace notellm {

class ContrastiveMask {
 public:
  // For the rows [first, last) of the gathered notes `ids` (notes 2i and 2i + 1 are a pair), the columns that infonce()
  // leaves out: j = i, and, if mask_known, every j other than i's positive with ids[j] = ids[i] (the same note again)
  // or {ids[i], ids[j]} a pair of the batch (a known positive of the same note in another pair). Time is that of
  // sorting the notes and the columns found; nothing grows with the square of the notes. Memory is kept between calls.
  // Throws Error: an odd number of ids; rows outside them; 2^31 masked columns or more.
  void build(std::span<const int64_t> ids, int64_t first, int64_t last, bool mask_known);

  // Row i's columns, ascending, are columns()[begin()[i - first] … begin()[i - first + 1]). Valid until the next build.
  Tensor begin() const { return Tensor::of(begin_.data(), {static_cast<int64_t>(begin_.size())}); }
  Tensor columns() const { return Tensor::of(columns_.data(), {static_cast<int64_t>(columns_.size())}); }

 private:
  void group_columns(std::span<const int64_t> ids);
  void append_known(int32_t row);

  // A group is the columns of one id, ascending: those at [group_begin_[g], group_begin_[g + 1]) of sorted_.
  struct Column {
    int64_t id;
    int32_t index;
    auto operator<=>(const Column&) const = default;
  };
  std::vector<Column> sorted_;
  std::vector<int32_t> group_begin_, group_of_;
  std::vector<std::pair<int32_t, int32_t>> partners_;  // groups that form a pair, both ways round, ascending, each once
  std::vector<int32_t> begin_, columns_;
};

}  // namespace notellm

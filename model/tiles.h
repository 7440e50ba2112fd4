// Rows in tiles that stay in the cache while several ops go over them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/memory.h"

namespace notellm {

// 512 rows of a few hundred to a few thousand columns are 0.4 to 6 MB: the L2 and a part of the L3 cache of a core.
inline constexpr int64_t tile_rows = 512;

// work(begin, end) for each tile of 0 .. rows; what it allocates from the arena is given back after each tile.
template <class Work>
void for_tiles(Arena& arena, int64_t rows, const Work& work) {
  const int64_t mark = arena.mark();
  for (int64_t begin = 0; begin < rows; begin += tile_rows) {
    work(begin, std::min(begin + tile_rows, rows));
    arena.rewind(mark);
  }
}

}  // namespace notellm

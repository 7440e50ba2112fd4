// Rows in tiles that stay in the cache while several ops go over them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/memory.h"

namespace notellm {

// 512 rows of a few hundred to a few thousand columns are 0.4 to 6 MB: the L2 and a part of the L3 cache of a core.
inline constexpr int64_t tile_rows = 512;
// On CUDA rows enough to fill a GPU with each op; tiles, because memory for all rows at once would be wasted.
constexpr int64_t tile_rows_of(Device device) { return device == Device::cpu ? tile_rows : 8192; }

// Rows of a tile of f32 logits: on CUDA 256 MB of them, but a multiple of 128 rows, the products' own tiles.
constexpr int64_t logit_rows(Device device, int64_t vocabulary) {
  if (device == Device::cpu) return tile_rows;
  return std::clamp((int64_t{256} << 20) / (vocabulary * 4) / 128 * 128, int64_t{128}, tile_rows_of(device));
}

// work(begin, end) for each tile of 0 .. rows; what it allocates from the arena is given back after each tile.
template <class Work>
void for_tiles(Arena& arena, int64_t rows, int64_t tile, const Work& work) {
  const int64_t mark = arena.mark();
  for (int64_t begin = 0; begin < rows; begin += tile) {
    work(begin, std::min(begin + tile, rows));
    arena.rewind(mark);
  }
}
template <class Work>
void for_tiles(Arena& arena, int64_t rows, const Work& work) {
  for_tiles(arena, rows, tile_rows_of(arena.device()), work);
}

}  // namespace notellm

// Products with panels by AMX, which multiplies tiles of bf16: gemm_panels.cpp says what a kind of product does.
// Instructions and shapes: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "kernels/small_gemm.h"

namespace notellm {

// A panel is k in pieces of `depth`, the last one filled up with zeros; a piece is the tiles of its left and of its
// right columns: [depth/2, 16 columns, 2], neighbours in k side by side.
class Tiles {
 public:
  static constexpr int64_t columns = 32;
  static constexpr int64_t group_rows = 256;  // of 1,024 elements: half a megabyte, which stays in the second cache

  static int64_t panel_elements(int64_t k) { return round_up(k, depth) * columns; }
  static void turn(const bf16* low, const bf16* high, int64_t k, bf16* panel);

  explicit Tiles(int64_t k)
      : k_(k), pieces_(round_up(k, depth) / depth), filled_(memory(group_rows * pieces_ * depth)) {
    configure();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }
  void set(const bf16* a, int64_t rows);
  template <class Result>
  class Multiply;

 private:
  static constexpr int64_t tile_rows = 16, depth = 32, row_bytes = 64, tile_size = tile_rows * depth;  // of all tiles
  static constexpr int64_t piece_size = 2 * tile_size;                                                 // of a panel
  static constexpr int64_t block_rows = 2 * tile_rows;  // 2 × 2 tiles of sums, two of a, two of b: there are eight
  static_assert(vector_lanes == tile_rows && columns == 2 * vector_lanes && group_rows % block_rows == 0);

  static void configure();
  static bf16* memory(int64_t size) {
    thread_local std::vector<bf16> memory;
    memory.resize(std::max(memory.size(), static_cast<size_t>(size)));
    return memory.data();
  }
  // A tile's rows and the first elements of k; the others are further on.
  struct Rows {
    const bf16* data;
    int64_t stride_bytes;
  };
  Rows rows_from(int64_t row) const {
    const auto rows = [&](const bf16* from, int64_t count, int64_t stride) {
      return Rows{from + count * stride, stride * int64_t{sizeof(bf16)}};
    };
    return row < first_filled_ ? rows(a_, row, k_) : rows(filled_, row - first_filled_, pieces_ * depth);
  }

  int64_t k_, pieces_;
  const bf16* a_ = nullptr;   // the group's rows; those of whole tiles are read where they stand
  int64_t first_filled_ = 0;  // of the others, or of all if k is not whole pieces
  bf16* filled_;              // [rows, pieces of k, depth]: they, filled up with zeros
};

// All eight tiles are whole ones.
inline void Tiles::configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } configuration;
  for (int tile = 0; tile < 8; ++tile) {
    configuration.row_bytes[tile] = row_bytes;
    configuration.rows[tile] = tile_rows;
  }
  _tile_loadconfig(&configuration);
}

// As 32-bit lanes two neighbours in k are one element; tile by tile they are a square to turn.
inline void Tiles::turn(const bf16* low, const bf16* high, int64_t k, bf16* panel) {
  for (int64_t at = 0; at < k; at += depth)
    for (const bf16* rows : {low, high}) {
      vfloat square[vector_lanes] = {};
      const auto load = [&](int64_t bytes) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int i = 0; i < vector_lanes; ++i) std::memcpy(&square[i], rows + i * k + at, static_cast<size_t>(bytes));
      };
      at + depth <= k ? load(row_bytes) : load((k - at) * int64_t{sizeof(bf16)});
      transpose(square);
      std::memcpy(panel, square, sizeof square);
      panel += tile_size;
    }
}

inline void Tiles::set(const bf16* a, int64_t rows) {
  const int64_t filled_k = pieces_ * depth;
  a_ = a;
  first_filled_ = k_ == filled_k ? rows / tile_rows * tile_rows : 0;
  std::fill_n(filled_, (round_up(rows, tile_rows) - first_filled_) * filled_k, bf16{});
  for (int64_t row = first_filled_; row < rows; ++row)
    std::copy_n(a + row * k_, k_, filled_ + (row - first_filled_) * filled_k);
}

// Multiplies a block, and puts meanwhile the sums of the one before: a put waits for all of a block's products, and one
// that follows at once keeps those of the next block out of the CPU's window (gate and up of 512 rows: 1,440 GFLOP/s at
// best, so 1,770 to 2,300).
template <class Result>
class Tiles::Multiply {
 public:
  explicit Multiply(const Tiles& group)
      : group_(group), puts_a_piece_(round_up(block_rows, group.pieces_) / group.pieces_) {}
  Multiply(const Multiply&) = delete;
  Multiply& operator=(const Multiply&) = delete;
  ~Multiply() { put(block_rows); }

  void operator()(const bf16* panel, const Result& c, const bf16* next) {
    const int64_t blocks = round_up(c.rows, block_rows) / block_rows;
    ReadAhead ahead{blocks == 1 ? panel + 2 * piece_size : next, piece_size / blocks};
    for (int64_t row = 0; row < c.rows; row += block_rows) {
      const int64_t rows = std::min(block_rows, c.rows - row);
      if (rows > tile_rows)
        block<true>(group_.rows_from(row), group_.rows_from(row + tile_rows), panel, ahead);
      else
        block<false>(group_.rows_from(row), {}, panel, ahead);
      std::swap(sums_, waiting_sums_);
      waiting_ = c.part(row, rows, 0);
      next_put_ = 0;
    }
  }

 private:
  // What is wanted next, `step` elements at each piece of k: several blocks share the next panel; a single one, which
  // reads panels as fast as memory gives them, asks for its own two pieces ahead. Into the first cache: to fetch them
  // from the second would take one of the core's few requests once more (32 rows took a seventh longer).
  struct ReadAhead {
    const bf16* from;
    int64_t step;
    void take() {
      prefetch<3>(from, step * int64_t{sizeof(bf16)});
      from += step;
    }
  };

  // sums = the products of a block's rows, those of the second tile only if there are both, with the panel. Tiles 0 to
  // 3 are sums, 4 and 5 of a, 6 and 7 of b.
  template <bool both>
  void block(Rows upper, Rows lower, const bf16* panel, ReadAhead& ahead) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (both) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t piece = 0; piece < group_.pieces_; ++piece) {
      _tile_loadd(6, panel, row_bytes);
      _tile_loadd(7, panel + tile_size, row_bytes);
      _tile_loadd(4, upper.data + piece * depth, upper.stride_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (both) {
        _tile_loadd(5, lower.data + piece * depth, lower.stride_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      panel += piece_size;
      ahead.take();
      put(puts_a_piece_);
    }
    constexpr int64_t sums_bytes = columns * sizeof(float);
    _tile_stored(0, sums_, sums_bytes);
    _tile_stored(1, sums_ + tile_rows, sums_bytes);
    if constexpr (both) {
      _tile_stored(2, sums_ + tile_rows * columns, sums_bytes);
      _tile_stored(3, sums_ + tile_rows * columns + tile_rows, sums_bytes);
    }
  }

  // So many rows of those that wait, if there are.
  void put(int64_t count) {
    for (const int64_t end = std::min(next_put_ + count, waiting_.rows); next_put_ < end; ++next_put_) {
      const float* sums = waiting_sums_ + next_put_ * columns;
      waiting_.put(next_put_, vload(sums), vload(sums + vector_lanes));
    }
  }

  const Tiles& group_;
  int64_t puts_a_piece_;  // all of a block's in all pieces
  alignas(vector_bytes) float memory_[2][block_rows * columns];
  float *sums_ = memory_[0], *waiting_sums_ = memory_[1];
  Result waiting_ = {};
  int64_t next_put_ = 0;
};

}  // namespace notellm

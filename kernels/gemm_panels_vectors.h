// Products with panels by the multiply-add of f32 vectors, on any CPU: gemm_panels.cpp says what a kind of product
// does.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/small_gemm.h"

namespace notellm {

// A panel is [k, columns] of bᵀ; columns c and c + columns/2 stand side by side, so that a shift and a mask make two
// vectors of neighbouring columns of them.
class Vectors {
 public:
  static constexpr int64_t columns = 2 * vector_lanes;

  // Rows of a block: with two vectors of sums each, two of b and one of a they fill the registers.
  static constexpr int most_rows = vector_registers == 32 ? 12 : 6;

  // In f32 a group's rows stay in the second cache while one panel follows the other.
  static constexpr int64_t group_rows = 8 * most_rows;

  static int64_t panel_elements(int64_t k) { return k * columns; }
  static void turn(const bf16* low, const bf16* high, int64_t k, bf16* panel);

  explicit Vectors(int64_t k)
      : k_(k), pieces_(round_up(k, depth) / depth), tiles_(memory(group_rows * pieces_ * depth)) {}
  void set(const bf16* a, int64_t rows) const;
  template <class Result>
  class Multiply;

 private:
  // So much of k at a time: a panel's piece in f32 (16 KB with AVX-512) stays in the first cache while the blocks of a
  // group, 6 KB each, pass through. Twice as much is slower.
  static constexpr int64_t depth = 128;

  // A piece of a panel, [depth, columns], as it stands there; in f32, as a group's other blocks read it; and as the
  // first of them reads the one and leaves the other.
  struct Halves {
    const bf16* data;
    vpair operator[](int64_t at) const { return vload_apart(data + at * columns); }
  };
  struct Floats {
    float* data;
    vpair operator[](int64_t at) const {
      return {vload(data + at * columns), vload(data + at * columns + vector_lanes)};
    }
  };
  struct Widening {
    Halves from;
    Floats to;
    vpair operator[](int64_t at) const {
      const vpair pair = from[at];
      vstore(to.data + at * columns, pair.even);
      vstore(to.data + at * columns + vector_lanes, pair.odd);
      return pair;
    }
  };

  // The bytes that are wanted next, asked for evenly while a block is computed: all at once they would wait for each
  // other.
  struct ReadAhead {
    const char* from;
    int64_t step;
  };

  // Elements begin .. begin + count of k.
  struct Piece {
    int64_t begin, count;
  };

  template <class F>
  static void with_block(int64_t count, const F& f);
  template <int rows, class B>
  static void block(const float* a, B b, Piece piece, float* sums, ReadAhead next);

  static float* memory(int64_t size) {
    thread_local std::vector<float> memory;
    memory.resize(std::max(memory.size(), static_cast<size_t>(size)));
    return memory.data();
  }
  // Of the group's rows in f32, that of a row's block and an element of k.
  float* tile(int64_t row, int64_t at) const {
    return tiles_ + (row / most_rows * pieces_ + at / depth) * most_rows * depth;
  }

  int64_t k_, pieces_;
  float* tiles_;  // as blocks read them: [blocks, pieces of k, most_rows, depth]
};

// As 32-bit lanes a row of the one half and its partner are one row; they are turned a square at a time.
inline void Vectors::turn(const bf16* low, const bf16* high, int64_t k, bf16* panel) {
  int64_t at = 0;
  for (; at + vector_lanes <= k; at += vector_lanes) {
    vfloat square[vector_lanes];
#pragma GCC unroll 16
    for (int i = 0; i < vector_lanes; ++i)
      square[i] = (vfloat)((vuint)vload(low + i * k + at) >> 16 | (vuint)vload(high + i * k + at));
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < vector_lanes; ++i) std::memcpy(panel + (at + i) * columns, &square[i], sizeof square[i]);
  }
  for (; at < k; ++at)
    for (int64_t c = 0; c < columns; ++c) panel[at * columns + c] = (c % 2 == 0 ? low : high)[c / 2 * k + at];
}

// Each thread widens the rows for itself: reading what another one has just written takes longer than doing it again.
inline void Vectors::set(const bf16* a, int64_t rows) const {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t at = 0; at < k_; at += depth)
      pack_row(a + row * k_ + at, std::min(depth, k_ - at), 1.0f, tile(row, at) + row % most_rows * depth);
}

// Calls f<rows> with the least size of a block that has room for `count` rows.
template <class F>
void Vectors::with_block(int64_t count, const F& f) {
  if (count == 1) return f.template operator()<1>();
  if (count == 2) return f.template operator()<2>();
  if (count <= 4) return f.template operator()<4>();
  if constexpr (most_rows > 8)
    if (count <= 8) return f.template operator()<8>();
  f.template operator()<most_rows>();
}

// Adds to a block's sums [rows, columns] the products of a piece; the first one begins them. A function of its own, or
// g++ 12 keeps some of the sums in memory.
template <int rows, class B>
[[gnu::noinline]] void Vectors::block(const float* a, B b, Piece piece, float* sums, ReadAhead next) {
  vfloat left[rows] = {}, right[rows] = {};  // of each half of the panel's columns
  if (piece.begin > 0)
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      left[r] = vload(sums + r * columns);
      right[r] = vload(sums + r * columns + vector_lanes);
    }
  for (int64_t at = 0; at < piece.count; ++at) {
    __builtin_prefetch(next.from + at * next.step, 0, 2);
    const auto [b_left, b_right] = b[at];
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const float scalar = a[r * depth + at];
      left[r] += scalar * b_left;
      right[r] += scalar * b_right;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    vstore(sums + r * columns, left[r]);
    vstore(sums + r * columns + vector_lanes, right[r]);
  }
}

template <class Result>
class Vectors::Multiply {
 public:
  explicit Multiply(const Vectors& group) : group_(group) {}

  void operator()(const bf16* panel, const Result& c, const bf16* next) const {
    alignas(vector_bytes) float sums[group_rows * columns], memory[depth * columns];
    const Floats floats{memory};
    const int64_t k = group_.k_, blocks = round_up(c.rows, most_rows) / most_rows;
    ReadAhead ahead{reinterpret_cast<const char*>(next), columns * int64_t{sizeof(bf16)} / blocks};
    for (int64_t begin = 0; begin < k; begin += depth) {
      const Piece piece{begin, std::min(depth, k - begin)};
      const Halves halves{panel + begin * columns};
      const auto run = [&](auto b, int64_t row) {
        with_block(c.rows - row,
                   [&]<int rows>() { block<rows>(group_.tile(row, begin), b, piece, sums + row * columns, ahead); });
        ahead.from += ahead.step * piece.count;
        if (begin + piece.count < k) return;
        for (int64_t r = row; r < std::min(row + most_rows, c.rows); ++r)
          c.put(r, vload(sums + r * columns), vload(sums + r * columns + vector_lanes));
      };
      blocks > 1 ? run(Widening{halves, floats}, 0) : run(halves, 0);
      for (int64_t row = most_rows; row < c.rows; row += most_rows) run(floats, row);
    }
  }

 private:
  const Vectors& group_;
};

}  // namespace notellm

// Register-blocked products of small f32 tiles that lie in cache, for kernels that fuse something into the product, and
// the packing of f32 or bf16 rows into such tiles.
#pragma once

#include <algorithm>

#include "kernels/vector_math.h"

namespace notellm {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int vector_registers = 32;
#else
constexpr int vector_registers = 16;
#endif

// Rows of one register block. 8 rows × 2 vectors take 16 of the 32 vector registers of AVX-512 and NEON and hide the
// latency of their FMA units; 4 × 2 is what fits 16 registers.
constexpr int block_rows = vector_registers / 4;
constexpr int tile_vectors = 2;
constexpr int tile_columns = tile_vectors * vector_lanes;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Element [r, k] of the left operand, read one float at a time.
struct RowMajor {
  const float* data;
  int64_t stride;
  float at(int64_t r, int64_t k) const { return data[r * stride + k]; }
};
struct ColumnMajor {
  const float* data;
  int64_t stride;
  float at(int64_t r, int64_t k) const { return data[k * stride + r]; }
};

// x[r, :] = Σ_{k < depth} a[r, k] · b[k, :] for block_rows rows and `vectors` vectors of columns, in registers;
// then finish(r, v, x[r, v-th vector]) for each. b is row-major; its rows are b_stride floats apart.
template <int vectors, class Left, class Finish>
[[gnu::always_inline]] inline void gemm_tile(Left a, const float* b, int64_t b_stride, int64_t depth, Finish&& finish) {
  vfloat sum[block_rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vfloat row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) row[v] = vload(b + k * b_stride + v * vector_lanes);
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; ++r) {
      const float scalar = a.at(r, k);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] += scalar * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < block_rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) finish(r, v, sum[r][v]);
}

// The same for all columns of a row-major b: finish(r, column, x[r, column … column + vector_lanes]). `columns` is a
// multiple of vector_lanes.
template <class Left, class Finish>
[[gnu::always_inline]] inline void gemm_rows(Left a, const float* b, int64_t b_stride, int64_t depth, int64_t columns,
                                             Finish&& finish) {
  int64_t column = 0;
  const auto at_column = [&](int r, int v, vfloat x) __attribute__((always_inline)) {
    finish(r, column + v * vector_lanes, x);
  };
  for (; column + tile_columns <= columns; column += tile_columns)
    gemm_tile<tile_vectors>(a, b + column, b_stride, depth, at_column);
  for (; column < columns; column += vector_lanes) gemm_tile<1>(a, b + column, b_stride, depth, at_column);
}

// The first n elements, at most all lanes; the other lanes are 0.
template <class T>
inline vfloat vload(const T* from, int64_t n) {
  if (n >= vector_lanes) [[likely]]
    return vload(from);
  vfloat v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = static_cast<float>(from[i]);
  return v;
}
template <class T>
inline void vstore(T* to, vfloat v, int64_t n) {
  if (n >= vector_lanes) [[likely]]
    return vstore(to, v);
  for (int64_t i = 0; i < n; ++i) to[i] = T(v[i]);
}

// to[0 … round_up(n, vector_lanes)] = from[0 … n] · factor, then zeros.
template <class T>
inline void pack_row(const T* from, int64_t n, float factor, float* to) {
  for (int64_t c = 0; c < n; c += vector_lanes) vstore(to + c, vload(from + c, n - c) * factor);
}

// A vector of indices that the compiler keeps as data: written lane by lane, GCC 12 builds it anew at every use.
struct alignas(vector_bytes) LaneIndices {
  int32_t lane[vector_lanes];
  vint load() const {
    vint v;
    std::memcpy(&v, lane, sizeof v);
    return v;
  }
};
template <class F>
constexpr LaneIndices lane_indices(F f) {
  LaneIndices indices = {};
  for (int i = 0; i < vector_lanes; ++i) indices.lane[i] = f(i);
  return indices;
}

// Transposes the vector_lanes × vector_lanes matrix in place: log2(vector_lanes) perfect shuffles of its rows.
inline void transpose(vfloat (&rows)[vector_lanes]) {
  constexpr int half = vector_lanes / 2;
  // Lanes of (a, b) in the order a0 b0 a1 b1 …: the first half and the second.
  static constexpr LaneIndices low = lane_indices([](int i) { return i / 2 + i % 2 * vector_lanes; });
  static constexpr LaneIndices high = lane_indices([](int i) { return i / 2 + i % 2 * vector_lanes + half; });
#pragma GCC unroll 4
  for (int step = 1; step < vector_lanes; step *= 2) {
    vfloat mixed[vector_lanes];
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + half], low.load());
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + half], high.load());
    }
#pragma GCC unroll 16
    for (int i = 0; i < vector_lanes; ++i) rows[i] = mixed[i];
  }
}

// Lane i of the result is the sum of the lanes of rows[i]: a tree of additions, the same for each row.
inline vfloat sum_rows(vfloat (&rows)[vector_lanes]) {
  constexpr int half = vector_lanes / 2;
  static constexpr LaneIndices low = lane_indices([](int i) { return i / 2 + i % 2 * vector_lanes; });
  static constexpr LaneIndices high = lane_indices([](int i) { return i / 2 + i % 2 * vector_lanes + half; });
#pragma GCC unroll 4
  for (int left = half; left > 0; left /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < left; ++i)
      rows[i] = __builtin_shuffle(rows[i], rows[i + left], low.load()) +
                __builtin_shuffle(rows[i], rows[i + left], high.load());
  return rows[0];
}

// The transposed matrix [n, count] of rows row(0) … row(count − 1) of n elements, in panels of tile_columns columns:
// each panel is [n, tile_columns], and the last is filled up with zeros.
template <class Row>
inline void pack_transposed(Row row, int64_t count, int64_t n, float* to) {
  for (int64_t j = 0; j < round_up(count, tile_columns); j += vector_lanes) {
    float* corner = to + j / tile_columns * n * tile_columns + j % tile_columns;
    decltype(row(0)) from[vector_lanes];
    for (int i = 0; i < vector_lanes; ++i) from[i] = j + i < count ? row(j + i) : nullptr;
    const bool whole = j + vector_lanes <= count;
    for (int64_t c = 0; c < n; c += vector_lanes, corner += vector_lanes * tile_columns) {
      vfloat square[vector_lanes] = {};
      if (whole && c + vector_lanes <= n) {
#pragma GCC unroll 16
        for (int i = 0; i < vector_lanes; ++i) square[i] = vload(from[i] + c);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < vector_lanes; ++i) vstore(corner + i * tile_columns, square[i]);
      } else {
        for (int i = 0; i < vector_lanes && from[i]; ++i) square[i] = vload(from[i] + c, n - c);
        transpose(square);
        for (int i = 0; i < vector_lanes && c + i < n; ++i) vstore(corner + i * tile_columns, square[i]);
      }
    }
  }
}

// gemm_rows for b packed by pack_transposed: b is [depth, columns].
template <class Left, class Finish>
[[gnu::always_inline]] inline void gemm_panels(Left a, const float* b, int64_t depth, int64_t columns,
                                               Finish&& finish) {
  for (int64_t column = 0; column < columns; column += tile_columns, b += depth * tile_columns)
    gemm_rows(
        a, b, tile_columns, depth, std::min<int64_t>(tile_columns, columns - column),
        [&](int r, int64_t c, vfloat x) __attribute__((always_inline)) { finish(r, column + c, x); });
}

// One float from all lanes, always in the same order.
template <int half = vector_lanes / 2, class Combine>
inline float fold(vfloat x, Combine combine) {
  static constexpr LaneIndices rotated = lane_indices([](int i) { return (i + half) % vector_lanes; });
  x = combine(x, __builtin_shuffle(x, rotated.load()));
  if constexpr (half > 1)
    return fold<half / 2>(x, combine);
  else
    return x[0];
}
inline float lane_sum(vfloat x) {
  return fold(x, [](vfloat a, vfloat b) { return a + b; });
}
inline float lane_max(vfloat x) {
  return fold(x, [](vfloat a, vfloat b) { return a > b ? a : b; });
}

}  // namespace notellm

#include "kernels/gemm_panels.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/checks.h"
#include "kernels/small_gemm.h"

namespace notellm {
namespace {

constexpr int64_t columns = 2 * vector_lanes;  // of a panel

// Rows of a block: with two vectors of sums each, two of b and one of a they fill the registers.
constexpr int most_rows = vector_registers == 32 ? 12 : 6;

// Rows of a that meet a panel together: in f32 they stay in the second cache while one panel follows the other.
constexpr int64_t group_rows = 8 * most_rows;

// So much of k at a time: a panel's piece in f32 (16 KB with AVX-512) stays in the first cache while the blocks of a
// group, 6 KB each, pass through. Twice as much is slower.
constexpr int64_t depth = 128;

// Calls f<rows> with the least size of a block that has room for `count` rows.
template <class F>
void with_block(int64_t count, const F& f) {
  if (count == 1) return f.template operator()<1>();
  if (count == 2) return f.template operator()<2>();
  if (count <= 4) return f.template operator()<4>();
  if constexpr (most_rows > 8)
    if (count <= 8) return f.template operator()<8>();
  f.template operator()<most_rows>();
}

// A group's rows of a in f32, in tiles as blocks read them: [blocks, pieces of k, most_rows, depth]. Each thread has
// its own: reading what another one has just written takes longer than doing it again.
class Group {
 public:
  explicit Group(int64_t k) : pieces_(round_up(k, depth) / depth), tiles_(memory()) {
    tiles_.resize(std::max(tiles_.size(), static_cast<size_t>(group_rows * pieces_ * depth)));
  }
  void set(const bf16* a, int64_t rows, int64_t k) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t at = 0; at < k; at += depth)
        pack_row(a + row * k + at, std::min(depth, k - at), 1.0f, tile(row, at) + row % most_rows * depth);
  }
  // That of a row's block and an element of k.
  float* tile(int64_t row, int64_t at) const {
    return tiles_.data() + (row / most_rows * pieces_ + at / depth) * most_rows * depth;
  }

 private:
  static std::vector<float>& memory() {
    thread_local std::vector<float> memory;
    return memory;
  }
  int64_t pieces_;
  std::vector<float>& tiles_;
};

// A piece of a panel, [depth, columns], as it stands there; in f32, as a group's other blocks read it; and as the first
// of them reads the one and leaves the other.
struct Halves {
  const bf16* data;
  vpair operator[](int64_t at) const { return vload_apart(data + at * columns); }
};
struct Floats {
  float* data;
  vpair operator[](int64_t at) const { return {vload(data + at * columns), vload(data + at * columns + vector_lanes)}; }
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

// Where products go: to rows of c as they are, or swiglu of the left and the right half of a panel's columns to rows of
// half as many. part(): those of a group with the panel that begins at a column.
template <class C>
struct Products {
  C* data;
  int64_t rows, stride;
  bool accumulate;
  Products part(int64_t row, int64_t count, int64_t column) const {
    return {data + row * stride + column, count, stride, accumulate};
  }
  void put(int64_t row, vfloat left, vfloat right) const {
    C* to = data + row * stride;
    if (accumulate) {
      left += vload(to);
      right += vload(to + vector_lanes);
    }
    vstore_two(to, left, right);
  }
};
struct Gated {
  bf16* data;
  int64_t rows, stride;
  Gated part(int64_t row, int64_t count, int64_t column) const {
    return {data + row * stride + column / 2, count, stride};
  }
  void put(int64_t row, vfloat gate, vfloat up) const { vstore(data + row * stride, gate * logistic(gate) * up); }
};

// Elements begin .. begin + count of k.
struct Piece {
  int64_t begin, count;
};

// Adds to a block's sums [rows, columns] the products of a piece; the first one begins them. A function of its own, or
// g++ 12 keeps some of the sums in memory.
template <int rows, class B>
[[gnu::noinline]] void block(const float* a, B b, Piece piece, float* sums, ReadAhead next) {
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

// A group's rows with one panel. next: the panel to read ahead.
template <class Result>
void multiply(const Group& a, const bf16* panel, int64_t k, const Result& c, const bf16* next) {
  alignas(vector_bytes) float sums[group_rows * columns], memory[depth * columns];
  const Floats floats{memory};
  const int64_t blocks = round_up(c.rows, most_rows) / most_rows;
  ReadAhead ahead{reinterpret_cast<const char*>(next), columns * int64_t{sizeof(bf16)} / blocks};
  for (int64_t begin = 0; begin < k; begin += depth) {
    const Piece piece{begin, std::min(depth, k - begin)};
    const Halves halves{panel + begin * columns};
    const auto run = [&](auto b, int64_t row) {
      with_block(c.rows - row,
                 [&]<int rows>() { block<rows>(a.tile(row, begin), b, piece, sums + row * columns, ahead); });
      ahead.from += ahead.step * piece.count;
      if (begin + piece.count < k) return;
      for (int64_t r = row; r < std::min(row + most_rows, c.rows); ++r)
        c.put(r, vload(sums + r * columns), vload(sums + r * columns + vector_lanes));
    };
    blocks > 1 ? run(Widening{halves, floats}, 0) : run(halves, 0);
    for (int64_t row = most_rows; row < c.rows; row += most_rows) run(floats, row);
  }
}

// Panels that a thread takes at a time: neighbours stand one behind the other in memory, but each thread shall come at
// least twice, since one is often held up.
int64_t panels_at_a_time(int64_t panels, int threads) { return std::clamp<int64_t>(panels / (2 * threads), 1, 8); }

// b: [n, k] in panels
template <class Result>
void product(const bf16* a, const Tensor& b, const Result& c) {
  const int64_t n = b.rows(), k = b.cols();
  const auto* panels = static_cast<const bf16*>(b.data);
#pragma omp parallel if (n * k > parallel_elements)
  {
    const Group group(k);
    const int threads = omp_get_num_threads();
    const int64_t chunk = panels_at_a_time(n / columns, threads), next = chunk > 1 ? 1 : threads;
    for (int64_t first = 0; first < c.rows; first += group_rows) {
      const int64_t rows = std::min(group_rows, c.rows - first);
      group.set(a + first * k, rows, k);
#pragma omp for schedule(dynamic, chunk) nowait
      for (int64_t column = 0; column < n; column += columns)
        multiply(group, panels + column * k, k, c.part(first, rows, column), panels + (column + next * columns) * k);
    }
  }
}

// A panel of vector_lanes rows from `low` on and as many from `high` on. As 32-bit lanes a row of the one and its
// partner are one row; they are turned a square at a time.
void turn(const bf16* low, const bf16* high, int64_t k, bf16* panel) {
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

// dtype: which of the two kinds
Tensor turn_all(const Tensor& b, DType dtype, void* to) {
  NOTELLM_CHECK(fits_panels(b), "panels of {}", describe(b));
  const int64_t k = b.cols();
  const bool gated = dtype == DType::bf16_gated_panels;
#pragma omp parallel for schedule(static) if (b.size() > parallel_elements)
  for (int64_t column = 0; column < b.rows(); column += columns) {
    const bf16* low = b.as<bf16>() + (gated ? column / 2 : column) * k;
    turn(low, low + (gated ? b.rows() / 2 : vector_lanes) * k, k, static_cast<bf16*>(to) + column * k);
  }
  return Tensor(to, dtype, {b.rows(), k});
}

}  // namespace

bool fits_panels(const Tensor& matrix) { return matrix.dtype == DType::bf16 && matrix.rows() % columns == 0; }

Tensor to_panels(const Tensor& b, void* to) { return turn_all(b, DType::bf16_panels, to); }
Tensor to_gated_panels(const Tensor& b, void* to) { return turn_all(b, DType::bf16_gated_panels, to); }

void gemm_panels(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  with_float_type("c", c, [&]<class C>(C) {
    product(a.as<bf16>(), b, Products<C>{c.as<C>(), c.rows(), c.cols(), accumulate});
  });
}

void gemm_swiglu(const Tensor& a, const Tensor& b, const Tensor& y) {
  NOTELLM_CHECK(a.dtype == DType::bf16 && b.dtype == DType::bf16_gated_panels && a.cols() == b.cols(),
                "gemm_swiglu: {} times {}", describe(a), describe(b));
  expect("y", y, DType::bf16, a.rows(), b.rows() / 2);
  product(a.as<bf16>(), b, Gated{y.as<bf16>(), y.rows(), y.cols()});
}

}  // namespace notellm

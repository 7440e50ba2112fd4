#include "kernels/gemm_panels.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/checks.h"
#include "kernels/gemm.h"
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

// Where the products of a group with a panel stand in c.
template <class C>
struct Result {
  C* data;
  int64_t rows, stride;
  bool accumulate;
  void put(int64_t row, vfloat left, vfloat right) const {
    if (row >= rows) return;
    C *to = data + row * stride, *to_right = to + vector_lanes;
    vstore(to, accumulate ? left + vload(to) : left);
    vstore(to_right, accumulate ? right + vload(to_right) : right);
  }
};

// Elements begin .. begin + count of k.
struct Piece {
  int64_t begin, count;
  bool last;
};

// A block's rows of a, from `row` of the group on, with one panel's piece. Between pieces their sums stand in `sums`
// [rows, columns]; after the last one they go to c.
template <int rows, class B, class C>
void block(const float* a, B b, Piece piece, float* sums, const Result<C>& c, int64_t row, ReadAhead next) {
  vfloat left[rows] = {}, right[rows] = {};  // sums of each half of the panel's columns
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
    if (piece.last) {
      c.put(row + r, left[r], right[r]);
      continue;
    }
    vstore(sums + r * columns, left[r]);
    vstore(sums + r * columns + vector_lanes, right[r]);
  }
}

// A group's rows with one panel. next: the panel to read ahead.
template <class C>
void multiply(const Group& a, const bf16* panel, int64_t k, const Result<C>& c, const bf16* next) {
  alignas(vector_bytes) float sums[group_rows * columns], memory[depth * columns];
  const Floats floats{memory};
  const int64_t blocks = round_up(c.rows, most_rows) / most_rows;
  ReadAhead ahead{reinterpret_cast<const char*>(next), columns * int64_t{sizeof(bf16)} / blocks};
  for (int64_t begin = 0; begin < k; begin += depth) {
    const Piece piece{begin, std::min(depth, k - begin), begin + depth >= k};
    const Halves halves{panel + begin * columns};
    for (int64_t row = 0; row < c.rows; row += most_rows, ahead.from += ahead.step * piece.count)
      with_block(c.rows - row, [&]<int rows>() {
        const auto run = [&](auto b) {
          block<rows>(a.tile(row, begin), b, piece, sums + row * columns, c, row, ahead);
        };
        if (row > 0) return run(floats);
        blocks > 1 ? run(Widening{halves, floats}) : run(halves);
      });
  }
}

template <class C>
void product(const bf16* a, const bf16* b, const Tensor& c, int64_t k, bool accumulate) {
  const int64_t m = c.rows(), n = c.cols();
#pragma omp parallel if (n * k > parallel_elements)
  {
    const Group group(k);
    for (int64_t first = 0; first < m; first += group_rows) {
      const int64_t rows = std::min(group_rows, m - first);
      group.set(a + first * k, rows, k);
      // Threads take panels as they get on, since one is often held up; the next one that a thread gets is most likely
      // as many further as there are threads.
#pragma omp for schedule(dynamic) nowait
      for (int64_t column = 0; column < n; column += columns) {
        const Result<C> to{c.as<C>() + first * n + column, rows, n, accumulate};
        multiply(group, b + column * k, k, to, b + (column + columns * omp_get_num_threads()) * k);
      }
    }
  }
}

// vector_lanes columns and their partners, vector_lanes of their elements: as 32-bit lanes a square, turned.
void turn(const bf16* from, int64_t k, bf16* panel) {
  vfloat square[vector_lanes];
#pragma GCC unroll 16
  for (int i = 0; i < vector_lanes; ++i) {
    const vuint low = (vuint)vload(from + i * k) >> 16, high = (vuint)vload(from + (i + vector_lanes) * k);
    square[i] = (vfloat)(low | high);
  }
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < vector_lanes; ++i) std::memcpy(panel + i * columns, &square[i], sizeof square[i]);
}

}  // namespace

bool panels_pay() { return gemm_widens_bf16() && vector_registers == 32; }

bool fits_panels(const Tensor& matrix) { return matrix.dtype == DType::bf16 && matrix.rows() % columns == 0; }

Tensor to_panels(const Tensor& b, void* to) {
  NOTELLM_CHECK(fits_panels(b), "panels of {}", describe(b));
  const Tensor panels(to, DType::bf16_panels, {b.rows(), b.cols()});
  const int64_t k = b.cols();
#pragma omp parallel for schedule(static) if (b.size() > parallel_elements)
  for (int64_t column = 0; column < b.rows(); column += columns) {
    const bf16* from = b.as<bf16>() + column * k;
    bf16* panel = static_cast<bf16*>(to) + column * k;
    int64_t at = 0;
    for (; at + vector_lanes <= k; at += vector_lanes) turn(from + at, k, panel + at * columns);
    for (; at < k; ++at)
      for (int64_t c = 0; c < columns; ++c) panel[at * columns + c] = from[(c / 2 + c % 2 * vector_lanes) * k + at];
  }
  return panels;
}

void gemm_panels(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  with_float_type(
      "c", c, [&]<class C>(C) { product<C>(a.as<bf16>(), static_cast<const bf16*>(b.data), c, a.cols(), accumulate); });
}

}  // namespace notellm

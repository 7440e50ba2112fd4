#include "kernels/gemm_panels.h"

#include <algorithm>
#include <vector>

#include "kernels/checks.h"
#include "kernels/gemm.h"
#include "kernels/small_gemm.h"

namespace notellm {
namespace {

constexpr int64_t columns = 2 * vector_lanes;  // of a panel

// Rows of a block: with two vectors of sums each, two of b and one of a they fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int most_rows = 12;
#else
constexpr int most_rows = 6;
#endif

// Blocks that meet all panels before the next ones do: so many rows of a stay in the second cache.
constexpr int64_t most_blocks = 8;

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

// `count` rows of a, widened, in the order in which a block reads them: [k, rows], zeros where there is no row.
template <int rows>
void order(const bf16* a, int64_t count, int64_t k, float* to) {
  for (int64_t at = 0; at < k; ++at)
    for (int r = 0; r < rows; ++r) *to++ = r < count ? static_cast<float>(a[r * k + at]) : 0.0f;
}

// The bytes that are wanted next, asked for evenly while a block is computed: all at once they would wait for each
// other.
struct ReadAhead {
  const char* from;
  int64_t step;
};

// Panels that a block of so many rows takes at a time. Each sum waits for the one before: fewer than eight of them
// under way leave the multipliers idle.
constexpr int64_t panels_of(int64_t rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// `count` ordered rows of a with some panels of b. c: where their products stand in c.
template <int rows, int panels, class C>
void block(const float* a, const bf16* b, int64_t k, C* c, int64_t stride, int64_t count, bool accumulate,
           ReadAhead next) {
  vfloat left[panels][rows] = {}, right[panels][rows] = {};  // sums of each half of a panel's columns
  for (int64_t at = 0; at < k; ++at)
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) {
      __builtin_prefetch(next.from + p * k * columns * int64_t{sizeof(bf16)} + at * next.step, 0, 2);
      const auto [b_left, b_right] = vload_apart(b + (p * k + at) * columns);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const float scalar = a[at * rows + r];
        left[p][r] += scalar * b_left;
        right[p][r] += scalar * b_right;
      }
    }
#pragma GCC unroll 4
  for (int p = 0; p < panels; ++p)
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      if (r >= count) break;
      C *to = c + r * stride + p * columns, *to_right = to + vector_lanes;
      vstore(to, accumulate ? left[p][r] + vload(to) : left[p][r]);
      vstore(to_right, accumulate ? right[p][r] + vload(to_right) : right[p][r]);
    }
}

template <class C>
class Product {
 public:
  Product(const bf16* b, const Tensor& c, int64_t k, bool accumulate)
      : b_(b), c_(c.as<C>()), m_(c.rows()), n_(c.cols()), k_(k), accumulate_(accumulate) {}

  void run(const bf16* a) {
    thread_local std::vector<float> memory;
    memory.resize(std::max(memory.size(), static_cast<size_t>(round_up(m_, most_rows) * k_)));
    float* const ordered = memory.data();  // a block after the other
    const int64_t panels = panels_of(m_);
#pragma omp parallel if (n_ * k_ > parallel_elements)
    {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < m_; row += most_rows)
        with_block(m_ - row, [&]<int rows>() { order<rows>(a + row * k_, m_ - row, k_, ordered + row * k_); });
      for (int64_t first = 0; first < m_; first += most_blocks * most_rows)
#pragma omp for schedule(static) nowait
        for (int64_t column = 0; column < n_; column += panels * columns)
          if (panels == 1 || column + panels * columns > n_)
            for (int64_t j = column; j < std::min(n_, column + panels * columns); j += columns)
              multiply<false>(ordered, first, j);
          else
            multiply<true>(ordered, first, column);
    }
  }

 private:
  // The blocks from row `first` with the panel at a column, or with as many panels as they take at a time.
  template <bool several>
  void multiply(const float* ordered, int64_t first, int64_t column) const {
    const int64_t last = std::min(m_, first + most_blocks * most_rows), panel_bytes = columns * k_ * 2;
    const int64_t blocks = (last - first + most_rows - 1) / most_rows, panels = several ? panels_of(m_) : 1;
    const bf16* b = b_ + column * k_;
    ReadAhead next{reinterpret_cast<const char*>(b) + panels * panel_bytes, panel_bytes / k_ / blocks};
    for (int64_t row = first; row < last; row += most_rows, next.from += panel_bytes / blocks)
      with_block(last - row, [&]<int rows>() {
        block<rows, several ? panels_of(rows) : 1>(ordered + row * k_, b, k_, c_ + row * n_ + column, n_, last - row,
                                                   accumulate_, next);
      });
  }

  const bf16* b_;
  C* c_;
  int64_t m_, n_, k_;
  bool accumulate_;
};

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

bool panels_pay() { return gemm_widens_bf16() && most_rows > 8; }

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
  with_float_type("c", c, [&]<class C>(C) {
    Product<C>(static_cast<const bf16*>(b.data), c, a.cols(), accumulate).run(a.as<bf16>());
  });
}

}  // namespace notellm

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
constexpr int most_rows = vector_registers == 32 ? 12 : 6;

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

// `count` ordered rows of a with one panel of b. c: where their products stand in c.
template <int rows, class C>
void block(const float* a, const bf16* panel, int64_t k, C* c, int64_t stride, int64_t count, bool accumulate,
           ReadAhead next) {
  vfloat left[rows] = {}, right[rows] = {};  // sums of each half of the panel's columns
  for (int64_t at = 0; at < k; ++at) {
    __builtin_prefetch(next.from + at * next.step, 0, 2);
    const auto [b_left, b_right] = vload_apart(panel + at * columns);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const float scalar = a[at * rows + r];
      left[r] += scalar * b_left;
      right[r] += scalar * b_right;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    if (r >= count) break;
    C *to = c + r * stride, *to_right = to + vector_lanes;
    vstore(to, accumulate ? left[r] + vload(to) : left[r]);
    vstore(to_right, accumulate ? right[r] + vload(to_right) : right[r]);
  }
}

template <class C>
void product(const bf16* a, const bf16* b, const Tensor& c, int64_t k, bool accumulate) {
  const int64_t m = c.rows(), n = c.cols(), panel_bytes = columns * k * int64_t{sizeof(bf16)};
  thread_local std::vector<float> memory;
  memory.resize(std::max(memory.size(), static_cast<size_t>(round_up(m, most_rows) * k)));
  float* const ordered = memory.data();  // a block after the other
#pragma omp parallel if (n * k > parallel_elements)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < m; row += most_rows)
      with_block(m - row, [&]<int rows>() { order<rows>(a + row * k, m - row, k, ordered + row * k); });
    for (int64_t first = 0; first < m; first += most_blocks * most_rows) {
      const int64_t last = std::min(m, first + most_blocks * most_rows);
      const int64_t blocks = (last - first + most_rows - 1) / most_rows;
#pragma omp for schedule(static) nowait
      for (int64_t column = 0; column < n; column += columns) {
        const bf16* panel = b + column * k;
        ReadAhead next{reinterpret_cast<const char*>(panel) + panel_bytes, panel_bytes / k / blocks};
        for (int64_t row = first; row < last; row += most_rows, next.from += panel_bytes / blocks)
          with_block(last - row, [&]<int rows>() {
            block<rows>(ordered + row * k, panel, k, c.as<C>() + row * n + column, n, last - row, accumulate, next);
          });
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

#include "kernels/gemm_few_rows.h"

#include <algorithm>
#include <vector>

#include "kernels/checks.h"
#include "kernels/small_gemm.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace notellm {
namespace {

// A block is `rows` rows of a and vector_lanes / rows of b, whose products are all sums of one vector each: as many as
// a vector has lanes, so that they become one vector in the end.

// Pieces of vector_lanes elements, as f32.
template <class T>
struct Widened {
  using Element = T;
  static constexpr int64_t step = vector_lanes;
  using Piece = vfloat;
  static Piece load(const T* from) { return vload(from); }
  static Piece load(const T* from, int64_t n) { return vload(from, n); }
  static vfloat multiply_add(vfloat sum, Piece a, Piece b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
// Pieces of 32 bf16, whose products are added in pairs.
struct Pairs {
  using Element = bf16;
  static constexpr int64_t step = 32;
  using Piece = __m512bh;
  static Piece load(const bf16* from) {
    Piece piece;
    std::memcpy(&piece, from, sizeof piece);
    return piece;
  }
  static Piece load(const bf16* from, int64_t n) {
    Piece piece = {};
    std::memcpy(&piece, from, static_cast<size_t>(n) * sizeof(bf16));
    return piece;
  }
  static vfloat multiply_add(vfloat sum, Piece a, Piece b) { return (vfloat)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
#endif

// What a block of b is read ahead by: the memory needs some 100 ns, in which a core takes some KB.
constexpr int64_t ahead_bytes = 4096;

// sums[r·columns + c] = a's row r · b's row c. The rows lie `k` elements apart.
template <class Kind, int rows, bool read_ahead>
[[gnu::always_inline]] inline void block(const typename Kind::Element* a, const typename Kind::Element* b, int64_t k,
                                         vfloat (&sums)[vector_lanes]) {
  constexpr int columns = vector_lanes / rows;
#pragma GCC unroll 16
  for (int i = 0; i < vector_lanes; ++i) sums[i] = vfloat{};
  const auto add = [&](const auto& load) __attribute__((always_inline)) {
    typename Kind::Piece of_a[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) of_a[r] = load(a + r * k);
#pragma GCC unroll 16
    for (int c = 0; c < columns; ++c) {
      const auto of_b = load(b + c * k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sums[r * columns + c] = Kind::multiply_add(sums[r * columns + c], of_a[r], of_b);
    }
  };
  int64_t at = 0;
  for (; at + Kind::step <= k; at += Kind::step) {
    if constexpr (read_ahead)
#pragma GCC unroll 16
      for (int c = 0; c < columns; ++c)
        __builtin_prefetch(reinterpret_cast<const char*>(b + c * k + at) + columns * k * sizeof(*b));
    add([&](const auto* row) __attribute__((always_inline)) { return Kind::load(row + at); });
  }
  if (at < k) add([&](const auto* row) __attribute__((always_inline)) { return Kind::load(row + at, k - at); });
}

template <class C>
struct Result {
  C* data;
  int64_t stride;
  bool accumulate;
  void put(int64_t i, int64_t j, float sum) const {
    C& to = data[i * stride + j];
    to = C(accumulate ? sum + static_cast<float>(to) : sum);
  }
  // A block of `rows` rows whose sums are one vector.
  template <int rows>
  void put_block(int64_t i, int64_t j, vfloat sums) const {
    constexpr int columns = vector_lanes / rows;
    C block[vector_lanes];
    if (accumulate) {
      for (int r = 0; r < rows; ++r) std::copy_n(data + (i + r) * stride + j, columns, block + r * columns);
      sums += vload(block);
    }
    vstore(block, sums);
    for (int r = 0; r < rows; ++r) std::copy_n(block + r * columns, columns, data + (i + r) * stride + j);
  }
};

// Rows [row, row + rows) of a with as many rows of b, from `column`, as a block has.
template <class Kind, int rows, bool read_ahead, class C>
void finish_block(const typename Kind::Element* a, const typename Kind::Element* b, int64_t k, int64_t row,
                  int64_t column, const Result<C>& result) {
  vfloat sums[vector_lanes];
  block<Kind, rows, read_ahead>(a + row * k, b + column * k, k, sums);
  result.template put_block<rows>(row, column, sum_rows(sums));
}

// The rows of b that come next, asked for a piece at a time.
struct ReadAhead {
  const char* at;
  int64_t piece;  // bytes
  void take() {
    prefetch<2>(at, piece);
    at += piece;
  }
};

// All rows of a with vector_lanes rows of b: those at a time that make the squarest blocks. `next` has a piece for each
// row of a.
constexpr int most_rows = vector_lanes >= 16 ? 4 : 2;
template <class Kind, class C>
void finish_columns(const typename Kind::Element* a, const typename Kind::Element* b, int64_t m, int64_t k,
                    ReadAhead next, const Result<C>& result) {
  int64_t row = 0;
  const auto blocks = [&]<int rows, bool read_ahead>() {
    for (int64_t c = 0; c < vector_lanes; c += vector_lanes / rows) {
      if constexpr (!read_ahead) next.take();
      finish_block<Kind, rows, read_ahead>(a, b, k, row, c, result);
    }
    row += rows;
  };
  if (m == 1) return blocks.template operator()<1, true>();
  while (row + most_rows <= m) blocks.template operator()<most_rows, false>();
  if constexpr (most_rows > 2)
    if (row + 2 <= m) blocks.template operator()<2, false>();
  if (row < m) blocks.template operator()<1, false>();
}

// One row of a, one of b: the same sums in the same order.
template <class Kind, class C>
void finish_one(const typename Kind::Element* a, const typename Kind::Element* b, int64_t k, int64_t row,
                int64_t column, const Result<C>& result) {
  vfloat sums[vector_lanes] = {};
  int64_t at = 0;
  const auto *from = a + row * k, *to = b + column * k;
  for (; at + Kind::step <= k; at += Kind::step)
    sums[0] = Kind::multiply_add(sums[0], Kind::load(from + at), Kind::load(to + at));
  if (at < k) sums[0] = Kind::multiply_add(sums[0], Kind::load(from + at, k - at), Kind::load(to + at, k - at));
  result.put(row, column, sum_rows(sums)[0]);
}

// c = a bᵀ, where rows_of_b(j, count) gives b's rows [j, j + count) as the kind has them.
template <class Kind, class C, class Rows>
void product(const typename Kind::Element* a, const Tensor& b, const Rows& rows_of_b, const Tensor& c,
             bool accumulate) {
  const int64_t m = c.rows(), n = c.cols(), k = b.cols(), step = vector_lanes, step_bytes = step * k * size_of(b.dtype);
#pragma omp parallel for schedule(static) if (n * k > parallel_elements)
  for (int64_t column = 0; column < n; column += step) {
    const Result<C> result{c.as<C>() + column, n, accumulate};
    const int64_t columns = std::min(step, n - column);
    const auto* rows = rows_of_b(column, columns);
    if (columns == step) {
      const char* next = static_cast<const char*>(b.data) + (column / step + 1) * step_bytes;
      finish_columns<Kind>(a, rows, m, k, {next, step_bytes / m}, result);
      continue;
    }
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < m; ++i) finish_one<Kind>(a, rows, k, i, j, result);
  }
}

// As the operands lie in memory.
template <class Kind, class C>
void product_in_place(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  using T = typename Kind::Element;
  const T* rows = b.as<T>();
  const auto rows_of_b = [&, k = b.cols()](int64_t j, int64_t) { return rows + j * k; };
  product<Kind, C>(a.as<T>(), b, rows_of_b, c, accumulate);
}

// Not in the function that uses them: its other threads do not pass through it, and would find them not constructed.
thread_local std::vector<float> widened_a, widened_b;

// bf16 as f32, in memory of the thread.
const float* widened(const bf16* from, int64_t count, std::vector<float>& memory) {
  memory.resize(std::max(memory.size(), static_cast<size_t>(count)));
  float* to = memory.data();
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
  return to;
}

// Of bf16 that is widened once for all blocks that multiply it: a in whole, of b what a thread is at.
template <class C>
void product_of_widened(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  const bf16* rows = b.as<bf16>();
  const auto rows_of_b = [&, k = b.cols()](int64_t j, int64_t count) {
    return widened(rows + j * k, count * k, widened_b);
  };
  product<Widened<float>, C>(widened(a.as<bf16>(), a.size(), widened_a), b, rows_of_b, c, accumulate);
}

}  // namespace

void gemm_few_rows(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate, bool dot_bf16) {
  const auto into = [&]<class Kind>(Kind) {
    with_float_type("c", c, [&]<class C>(C) { product_in_place<Kind, C>(a, b, c, accumulate); });
  };
  if (a.dtype == DType::f32) return product_in_place<Widened<float>, float>(a, b, c, accumulate);
#if defined(__AVX512BF16__)
  if (dot_bf16) return into(Pairs());
#endif
  if (a.rows() <= most_rows) return into(Widened<bf16>());
  with_float_type("c", c, [&]<class C>(C) { product_of_widened<C>(a, b, c, accumulate); });
}

}  // namespace notellm

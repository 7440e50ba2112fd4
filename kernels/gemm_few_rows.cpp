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

// A kind says how pieces of `step` elements of a and of b are read and multiplied. Pieces of f32:
struct Floats {
  using OfA = float;
  using OfB = float;
  static constexpr int64_t step = vector_lanes;
  static vfloat load(const float* from) { return vload(from); }
  static vfloat load(const float* from, int64_t n) { return vload(from, n); }
  static vfloat multiply_add(vfloat sum, vfloat a, vfloat b) { return sum + a * b; }
};

// Pieces of bf16, widened where they are used. a, which meets all of b, has been through it already.
struct Halves {
  using OfA = float;
  using OfB = bf16;
  static constexpr int64_t step = 2 * vector_lanes;
  static vpair load(const float* from) { return {vload(from), vload(from + vector_lanes)}; }
  static vpair load(const float* from, int64_t) { return load(from); }  // filled up with zeros
  static vpair load(const bf16* from) { return vload_apart(from); }
  static vpair load(const bf16* from, int64_t n) { return vload_apart(from, n); }
  static vfloat multiply_add(vfloat sum, vpair a, vpair b) { return sum + a.even * b.even + a.odd * b.odd; }
};

#if defined(__AVX512BF16__)
// Pieces of 32 bf16, whose products are added in pairs.
struct Pairs {
  using OfA = bf16;
  using OfB = bf16;
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

// A matrix's rows, `stride` elements apart.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
  const T* operator[](int64_t row) const { return data + row * stride; }
};

// sums[r·columns + c] = a's row r · b's row c, of k elements
template <class Kind, int rows, bool read_ahead>
[[gnu::always_inline]] inline void block(Rows<typename Kind::OfA> a, Rows<typename Kind::OfB> b, int64_t k,
                                         vfloat (&sums)[vector_lanes]) {
  constexpr int columns = vector_lanes / rows;
#pragma GCC unroll 16
  for (int i = 0; i < vector_lanes; ++i) sums[i] = vfloat{};
  const auto add = [&](const auto& load) __attribute__((always_inline)) {
    decltype(load(a.data)) of_a[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) of_a[r] = load(a[r]);
#pragma GCC unroll 16
    for (int c = 0; c < columns; ++c) {
      const auto of_b = load(b[c]);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sums[r * columns + c] = Kind::multiply_add(sums[r * columns + c], of_a[r], of_b);
    }
  };
  int64_t at = 0;
  for (; at + Kind::step <= k; at += Kind::step) {
    if constexpr (read_ahead)
#pragma GCC unroll 16
      for (int c = 0; c < columns; ++c) __builtin_prefetch(b[columns + c] + at);
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
void finish_block(Rows<typename Kind::OfA> a, Rows<typename Kind::OfB> b, int64_t k, int64_t row, int64_t column,
                  const Result<C>& result) {
  vfloat sums[vector_lanes];
  block<Kind, rows, read_ahead>(a.from(row), b.from(column), k, sums);
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
void finish_columns(Rows<typename Kind::OfA> a, Rows<typename Kind::OfB> b, int64_t m, int64_t k, ReadAhead next,
                    const Result<C>& result) {
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
void finish_one(const typename Kind::OfA* a, const typename Kind::OfB* b, int64_t k, int64_t row, int64_t column,
                const Result<C>& result) {
  vfloat sums[vector_lanes] = {};
  int64_t at = 0;
  for (; at + Kind::step <= k; at += Kind::step)
    sums[0] = Kind::multiply_add(sums[0], Kind::load(a + at), Kind::load(b + at));
  if (at < k) sums[0] = Kind::multiply_add(sums[0], Kind::load(a + at, k - at), Kind::load(b + at, k - at));
  result.put(row, column, sum_rows(sums)[0]);
}

// c = a bᵀ
template <class Kind, class C>
void product(Rows<typename Kind::OfA> a, const Tensor& b, const Tensor& c, bool accumulate) {
  const int64_t m = c.rows(), n = c.cols(), k = b.cols(), step = vector_lanes, step_bytes = step * k * size_of(b.dtype);
  const Rows<typename Kind::OfB> all{b.as<typename Kind::OfB>(), k};
#pragma omp parallel for schedule(static) if (n * k > parallel_elements)
  for (int64_t column = 0; column < n; column += step) {
    const Result<C> result{c.as<C>() + column, n, accumulate};
    const auto rows = all.from(column);
    if (column + step <= n) {
      const char* next = reinterpret_cast<const char*>(rows[step]);
      finish_columns<Kind>(a, rows, m, k, {next, step_bytes / m}, result);
      continue;
    }
    for (int64_t j = 0; column + j < n; ++j)
      for (int64_t i = 0; i < m; ++i) finish_one<Kind>(a[i], rows[j], k, i, j, result);
  }
}

// a as Halves reads it, in memory of the thread.
Rows<float> widened(const Tensor& a) {
  thread_local std::vector<float> memory;
  const int64_t m = a.rows(), k = a.cols(), step = Halves::step, stride = round_up(k, step);
  memory.resize(std::max(memory.size(), static_cast<size_t>(m * stride)));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t at = 0; at < k; at += step) {
      const auto [even, odd] = vload_apart(a.as<bf16>() + i * k + at, std::min(step, k - at));
      vstore(memory.data() + i * stride + at, even);
      vstore(memory.data() + i * stride + at + vector_lanes, odd);
    }
  return {memory.data(), stride};
}

}  // namespace

void gemm_few_rows(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate, bool dot_bf16) {
  if (a.dtype == DType::f32) return product<Floats, float>({a.as<float>(), a.cols()}, b, c, accumulate);
  with_float_type("c", c, [&]<class C>(C) {
#if defined(__AVX512BF16__)
    if (dot_bf16) return product<Pairs, C>({a.as<bf16>(), a.cols()}, b, c, accumulate);
#endif
    product<Halves, C>(widened(a), b, c, accumulate);
  });
}

}  // namespace notellm

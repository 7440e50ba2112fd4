#include "kernels/gemm_panels.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "kernels/checks.h"
#include "kernels/gemm.h"
#include "kernels/gemm_panels_vectors.h"
#if defined(__AMX_BF16__)
#include "kernels/gemm_panels_tiles.h"
#endif

namespace notellm {
namespace {

// Kinds of products, Vectors and Tiles, have
//   columns                   of a panel, a half of which is one vector of f32
//   group_rows                rows of a that meet a panel together
//   panel_elements(k)         of memory
//   turn(low, high, k, panel) a panel of columns/2 rows of b from `low` on and as many from `high` on
// and a thread's objects
//   Kind group(k)
//   group.set(a, rows)        the rows of a, at most group_rows
//   Kind::Multiply<Result> multiply(group)
//   multiply(panel, c, next)  at last c.put(row, left, right): the products of c.rows rows with either half of the
//                             panel's columns; next: the panel to read ahead
template <class F>
auto with_kind(const F& f) {
#if defined(__AMX_BF16__)
  if (gemm_has_tiles()) return f.template operator()<Tiles>();
#endif
  return f.template operator()<Vectors>();
}

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

// Panels that a thread takes at a time: neighbours stand one behind the other in memory, but each thread shall come at
// least twice, since one is often held up.
int64_t panels_at_a_time(int64_t panels, int threads) { return std::clamp<int64_t>(panels / (2 * threads), 1, 8); }

// b: [n, k] in panels
template <class Kind, class Result>
void product_of(const bf16* a, const Tensor& b, const Result& c) {
  const int64_t k = b.cols(), panels = b.rows() / Kind::columns, elements = Kind::panel_elements(k);
  const auto* first_panel = static_cast<const bf16*>(b.data);
#pragma omp parallel if (b.size() > parallel_elements)
  {
    Kind group(k);
    typename Kind::template Multiply<Result> multiply(group);
    const int threads = omp_get_num_threads();
    const int64_t chunk = panels_at_a_time(panels, threads), next = chunk > 1 ? 1 : threads;
    for (int64_t first = 0; first < c.rows; first += Kind::group_rows) {
      const int64_t rows = std::min(Kind::group_rows, c.rows - first);
      group.set(a + first * k, rows);
#pragma omp for schedule(dynamic, chunk) nowait
      for (int64_t panel = 0; panel < panels; ++panel)
        multiply(first_panel + panel * elements, c.part(first, rows, panel * Kind::columns),
                 first_panel + (panel + next) * elements);
    }
  }
}
template <class Result>
void product(const bf16* a, const Tensor& b, const Result& c) {
  with_kind([&]<class Kind>() { product_of<Kind>(a, b, c); });
}

// dtype: which of the two kinds of panels
Tensor turn_all(const Tensor& b, DType dtype, void* to) {
  NOTELLM_CHECK(fits_panels(b), "panels of {}", describe(b));
  const int64_t k = b.cols();
  const bool gated = dtype == DType::bf16_gated_panels;
  with_kind([&]<class Kind>() {
#pragma omp parallel for schedule(static) if (b.size() > parallel_elements)
    for (int64_t panel = 0; panel < b.rows() / Kind::columns; ++panel) {
      const int64_t half = Kind::columns / 2;
      const bf16* low = b.as<bf16>() + panel * (gated ? half : Kind::columns) * k;
      Kind::turn(low, low + (gated ? b.rows() / 2 : half) * k, k,
                 static_cast<bf16*>(to) + panel * Kind::panel_elements(k));
    }
  });
  return Tensor(to, dtype, {b.rows(), k});
}

}  // namespace

bool panels_pay() {
  return with_kind([]<class Kind>() { return !std::is_same_v<Kind, Vectors> || gemm_widens_bf16(); });
}

bool fits_panels(const Tensor& matrix) {
  return matrix.dtype == DType::bf16 && with_kind([&]<class Kind>() { return matrix.rows() % Kind::columns == 0; });
}

int64_t panel_bytes(const Tensor& matrix) {
  return with_kind([&]<class Kind>() {
    return matrix.rows() / Kind::columns * Kind::panel_elements(matrix.cols()) * size_of(DType::bf16);
  });
}

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

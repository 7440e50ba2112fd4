#include "kernels/embedding.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

void expect_indices(const char* name, const Tensor& indices, int32_t least, int64_t bound) {
  const int32_t* index = indices.as<int32_t>();
  for (int64_t i = 0; i < indices.rows(); ++i)
    NOTELLM_CHECK(index[i] >= least && index[i] < bound, "{}[{}] is {}, but must be below {}", name, i, index[i],
                  bound);
}

void expect_groups(const RowGroups& groups, int64_t rows_of_dy) {
  const int64_t rows = groups.rows.rows();
  const int32_t *begin = groups.begin.as<int32_t>(), *row = groups.rows.as<int32_t>();
  const int64_t count = groups.target.rows();
  NOTELLM_CHECK(begin[0] == 0 && begin[count] == rows, "groups of rows {} to {}, but there are {} rows", begin[0],
                begin[count], rows);
  for (int64_t g = 0; g < count; ++g)
    NOTELLM_CHECK(begin[g] <= begin[g + 1], "group {} begins at {} and ends at {}", g, begin[g], begin[g + 1]);
  for (int64_t k = 0; k < rows; ++k)
    NOTELLM_CHECK(row[k] >= 0 && row[k] < rows_of_dy, "row {} of the groups is {}, but must be below {}", k, row[k],
                  rows_of_dy);
}

void copy_rows(const char* name, const Tensor& from, const Tensor& indices, const Tensor& to) {
  expect_indices(name, indices, -1, from.rows());
  const int32_t* index = indices.as<int32_t>();
  const int64_t rows = to.rows(), bytes = to.cols() * size_of(to.dtype);
  const char* source = static_cast<const char*>(from.data);
  char* target = static_cast<char*>(to.data);
#pragma omp parallel for if (to.size() > parallel_elements)
  for (int64_t r = 0; r < rows; ++r)
    if (index[r] >= 0)
      std::memcpy(target + r * bytes, source + index[r] * bytes, bytes);
    else
      std::memset(target + r * bytes, 0, bytes);
}

template <class T>
void add_row(const T* from, int64_t cols, float* to) {
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) to[c] += static_cast<float>(from[c]);
}

constexpr int64_t block_cols = 256;

// to[c] += the sum of `count` rows of `from`.
template <class T, class Sum>
void add_rows(const T* from, const int32_t* rows, int64_t count, int64_t cols, Sum* to) {
  if constexpr (std::is_same_v<Sum, float>) {
    for (int64_t k = 0; k < count; ++k) add_row(from + rows[k] * cols, cols, to);
    return;
  }
  for (int64_t first = 0; first < cols; first += block_cols) {
    const int64_t width = std::min(block_cols, cols - first);
    float sum[block_cols];
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sum[c] = static_cast<float>(to[first + c]);
    for (int64_t k = 0; k < count; ++k) add_row(from + rows[k] * cols + first, width, sum);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) to[first + c] = rounded<Sum>(sum[c]);
  }
}

template <class T, class Sum>
void scatter(const Tensor& dy, const RowGroups& groups, const Tensor& dx) {
  const T* from = dy.as<T>();
  Sum* to = dx.as<Sum>();
  const int32_t *target = groups.target.as<int32_t>(),
                *begin = groups.begin.empty() ? nullptr : groups.begin.as<int32_t>(),
                *rows = begin ? groups.rows.as<int32_t>() : nullptr;
  const int64_t count = groups.target.rows(), cols = dy.cols();
  // Each target has one owner; frequent tokens make the work uneven, so that threads take what is left.
#pragma omp parallel for schedule(dynamic, 64) if (dy.size() > parallel_elements)
  for (int64_t g = 0; g < count; ++g) {
    const auto own = static_cast<int32_t>(g);
    if (begin)
      add_rows(from, rows + begin[g], begin[g + 1] - begin[g], cols, to + target[g] * cols);
    else
      add_rows(from, &own, 1, cols, to + target[g] * cols);
  }
}

}  // namespace

void embedding(Stream& stream, Tensor tokens, Tensor table, Tensor x) {
  expect("tokens", tokens, DType::i32, x.rows());
  expect("table", table, x.dtype, table.rows(), x.cols());
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::gather_rows(stream, table, tokens, x);
  copy_rows("tokens", table, tokens, x);
}

void gather_rows(Stream& stream, Tensor x, Tensor rows, Tensor y) {
  expect("rows", rows, DType::i32, y.rows());
  expect("x", x, y.dtype, x.rows(), y.cols());
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::gather_rows(stream, x, rows, y);
  copy_rows("rows", x, rows, y);
}

void scatter_add_rows(Stream& stream, Tensor dy, const RowGroups& groups, Tensor dx) {
  const int64_t rows = dy.rows(), count = groups.target.rows();
  const bool grouped = !groups.begin.empty();
  expect("target", groups.target, DType::i32, grouped ? count : rows);
  if (grouped) {
    expect("begin", groups.begin, DType::i32, count + 1);
    expect("rows", groups.rows, DType::i32, groups.rows.rows());
  }
  expect("dx", dx, dx.dtype == DType::f32 ? DType::f32 : dy.dtype, dx.rows(), dy.cols());
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::scatter_add_rows(stream, dy, groups, dx);
  expect_indices("target", groups.target, 0, dx.rows());
  if (grouped) expect_groups(groups, rows);
  with_float_type("dy", dy, [&]<class T>(T) {
    dx.dtype == DType::f32 ? scatter<T, float>(dy, groups, dx) : scatter<T, T>(dy, groups, dx);
  });
}

void GroupedRows::set(std::span<const int32_t> targets) {
  const auto n = static_cast<int32_t>(targets.size());
  // A counting sort: how many rows each target has, then where its next row goes.
  place_.assign(n == 0 ? 0 : *std::max_element(targets.begin(), targets.end()) + 1, 0);
  for (int32_t target : targets) {
    NOTELLM_CHECK(target >= -1, "target {} of a row", target);
    if (target >= 0) ++place_[target];
  }
  target_.clear();
  begin_.clear();
  int32_t begin = 0;
  for (int32_t t = 0; t < std::ssize(place_); ++t) {
    const int32_t count = place_[t];
    place_[t] = begin;
    if (count == 0) continue;
    target_.push_back(t);
    begin_.push_back(begin);
    begin += count;
  }
  begin_.push_back(begin);
  rows_.resize(begin);
  for (int32_t r = 0; r < n; ++r)
    if (targets[r] >= 0) rows_[place_[targets[r]]++] = r;
}

RowGroups GroupedRows::view() const {
  const auto of = [](const std::vector<int32_t>& v) { return Tensor::of(v.data(), {std::ssize(v)}); };
  return {of(target_), of(begin_), of(rows_)};
}

}  // namespace notellm

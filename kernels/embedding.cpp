#include "kernels/embedding.h"

#include <cstring>

#include "kernels/checks.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

void expect_indices(const char* name, const Tensor& indices, int64_t bound) {
  const int32_t* index = indices.as<int32_t>();
  for (int64_t i = 0; i < indices.rows(); ++i)
    NOTELLM_CHECK(index[i] >= 0 && index[i] < bound, "{}[{}] is {}, but must be below {}", name, i, index[i], bound);
}

void copy_rows(const Tensor& from, const int32_t* index, const Tensor& to) {
  const int64_t rows = to.rows(), bytes = to.cols() * size_of(to.dtype);
  const char* source = static_cast<const char*>(from.data);
  char* target = static_cast<char*>(to.data);
#pragma omp parallel for if (to.size() > parallel_elements)
  for (int64_t r = 0; r < rows; ++r) std::memcpy(target + r * bytes, source + index[r] * bytes, bytes);
}

template <class T, class Sum>
void add_row(const T* from, int64_t cols, Sum* to) {
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) to[c] = rounded<Sum>(static_cast<float>(to[c]) + static_cast<float>(from[c]));
}

// Counting sort: order[first[t] … first[t + 1]) are the rows with token t, ascending.
void sort_by_token(const int32_t* tokens, int64_t rows, int64_t vocabulary, int32_t* order, int32_t* first) {
  std::memset(first, 0, (vocabulary + 1) * sizeof(int32_t));
  for (int64_t r = 0; r < rows; ++r) ++first[tokens[r] + 1];
  for (int64_t t = 0; t < vocabulary; ++t) first[t + 1] += first[t];
  for (int64_t r = 0; r < rows; ++r) order[first[tokens[r]]++] = static_cast<int32_t>(r);
  // Each first[t] now is where t ends, which is where t + 1 begins.
  std::memmove(first + 1, first, vocabulary * sizeof(int32_t));
  first[0] = 0;
}

}  // namespace

void embedding(Stream&, Tensor tokens, Tensor table, Tensor x) {
  expect("tokens", tokens, DType::i32, x.rows());
  expect("table", table, x.dtype, table.rows(), x.cols());
  expect_indices("tokens", tokens, table.rows());
  copy_rows(table, tokens.as<int32_t>(), x);
}

void embedding_backward(Stream&, Tensor tokens, Tensor dx, Tensor dtable, Tensor workspace) {
  const int64_t rows = dx.rows(), cols = dx.cols(), vocabulary = dtable.rows();
  expect("tokens", tokens, DType::i32, rows);
  expect("dtable", dtable, DType::f32, vocabulary, cols);
  NOTELLM_CHECK(workspace.dtype == DType::i32 && workspace.size() >= rows + vocabulary + 1,
                "workspace is {}, but needs {} elements of i32", describe(workspace), rows + vocabulary + 1);
  expect_indices("tokens", tokens, vocabulary);
  int32_t *order = workspace.as<int32_t>(), *first = order + rows;
  sort_by_token(tokens.as<int32_t>(), rows, vocabulary, order, first);
  with_float_type("dx", dx, [&]<class T>(T) {
    const T* from = dx.as<T>();
    float* to = dtable.as<float>();
    // Each token has one owner; frequent tokens make the work uneven, so that threads take what is left.
#pragma omp parallel for schedule(dynamic, 64) if (rows * cols > parallel_elements)
    for (int64_t t = 0; t < vocabulary; ++t)
      for (int32_t i = first[t]; i < first[t + 1]; ++i) add_row(from + order[i] * cols, cols, to + t * cols);
  });
}

void gather_rows(Stream&, Tensor x, Tensor rows, Tensor y) {
  expect("rows", rows, DType::i32, y.rows());
  expect("x", x, y.dtype, x.rows(), y.cols());
  expect_indices("rows", rows, x.rows());
  copy_rows(x, rows.as<int32_t>(), y);
}

void scatter_add_rows(Stream&, Tensor dy, Tensor rows, Tensor dx) {
  const int64_t count = dy.rows(), cols = dy.cols();
  expect("rows", rows, DType::i32, count);
  expect("dx", dx, dy.dtype, dx.rows(), cols);
  expect_indices("rows", rows, dx.rows());
  const int32_t* index = rows.as<int32_t>();
  // One thread: a row may be named twice, and these are few rows.
  with_float_type("dy", dy, [&]<class T>(T) {
    for (int64_t r = 0; r < count; ++r) add_row(dy.as<T>() + r * cols, cols, dx.as<T>() + index[r] * cols);
  });
}

}  // namespace notellm

#include "kernels/embedding.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::view;

Stream stream;

TEST(Embedding, ByHand) {
  std::vector<float> table{0, 1, 10, 11, 20, 21}, x(6), dx{1, 2, 3, 4, 5, 6}, dtable{100, 100, 100, 100, 100, 100};
  std::vector<int32_t> tokens{2, 0, 2}, workspace(3 + 3 + 1);
  embedding(stream, view(tokens, {3}), view(table, {3, 2}), view(x, {3, 2}));
  EXPECT_EQ(x, (std::vector<float>{20, 21, 0, 1, 20, 21}));
  embedding_backward(stream, view(tokens, {3}), view(dx, {3, 2}), view(dtable, {3, 2}), view(workspace, {7}));
  EXPECT_EQ(dtable, (std::vector<float>{103, 104, 100, 100, 106, 108}));
  std::vector<float> y(4), dy{1, 1, 2, 2}, back{0, 0, 0, 0, 7, 7};
  std::vector<int32_t> rows{1, 1};
  gather_rows(stream, view(table, {3, 2}), view(rows, {2}), view(y, {2, 2}));
  EXPECT_EQ(y, (std::vector<float>{10, 11, 10, 11}));
  scatter_add_rows(stream, view(dy, {2, 2}), view(rows, {2}), view(back, {3, 2}));
  EXPECT_EQ(back, (std::vector<float>{0, 0, 3, 3, 7, 7}));
}

template <class T>
class EmbeddingOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(EmbeddingOf, Types);

template <class T>
void check(int64_t rows, int64_t vocabulary, int64_t cols) {
  SCOPED_TRACE(fmt::format("{} rows, {} tokens, {} columns", rows, vocabulary, cols));
  std::vector<T> table = cast<T>(normal(vocabulary * cols, 1)), x(rows * cols), dx = cast<T>(normal(rows * cols, 2));
  std::vector<int32_t> tokens = test::integers(rows, static_cast<int32_t>(vocabulary), 3),
                       workspace(rows + vocabulary + 1, -5);
  std::vector<float> dtable = normal(vocabulary * cols, 4);
  std::vector<double> exact = test::widen(dtable), magnitude = exact;
  for (double& m : magnitude) m = std::fabs(m);
  embedding(stream, view(tokens, {rows}), view(table, {vocabulary, cols}), view(x, {rows, cols}));
  embedding_backward(stream, view(tokens, {rows}), view(dx, {rows, cols}), view(dtable, {vocabulary, cols}),
                     view(workspace, {rows + vocabulary + 1}));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t to = tokens[r] * cols + c;
      ASSERT_EQ(static_cast<float>(x[r * cols + c]), static_cast<float>(table[to]));
      exact[to] += static_cast<float>(dx[r * cols + c]);
      magnitude[to] += std::fabs(static_cast<float>(dx[r * cols + c]));
    }
  for (size_t i = 0; i < exact.size(); ++i)
    test::expect_close(dtable[i], exact[i], magnitude[i], static_cast<double>(rows) + 1);
}

TYPED_TEST(EmbeddingOf, AgainstDouble) {
  check<TypeParam>(0, 3, 4);
  check<TypeParam>(1, 1, 1);
  check<TypeParam>(50, 1, 17);
  check<TypeParam>(7, 1000, 5);
  check<TypeParam>(700, 90, 67);
}

TYPED_TEST(EmbeddingOf, RowsAgainstDouble) {
  const int64_t n = 40, m = 90, cols = 33;
  std::vector<TypeParam> x = cast<TypeParam>(normal(n * cols, 1)), y(m * cols),
                         dx = cast<TypeParam>(normal(n * cols, 2));
  std::vector<int32_t> rows = test::integers(m, n, 3);
  gather_rows(stream, view(x, {n, cols}), view(rows, {m}), view(y, {m, cols}));
  std::vector<TypeParam> expected = dx;
  scatter_add_rows(stream, view(y, {m, cols}), view(rows, {m}), view(dx, {n, cols}));
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(static_cast<float>(y[r * cols + c]), static_cast<float>(x[rows[r] * cols + c]));
      TypeParam& sum = expected[rows[r] * cols + c];
      sum = TypeParam(static_cast<float>(sum) + static_cast<float>(y[r * cols + c]));
    }
  EXPECT_TRUE(test::bytes_of(dx) == test::bytes_of(expected)) << "added row by row, in order";
}

TYPED_TEST(EmbeddingOf, SameBitsForAnyThreads) {
  const int64_t rows = 900, vocabulary = 200, cols = 65;
  std::vector<int32_t> tokens = test::integers(rows, vocabulary, 3), workspace(rows + vocabulary + 1);
  std::vector<TypeParam> dx = cast<TypeParam>(normal(rows * cols, 2)),
                         table = cast<TypeParam>(normal(vocabulary * cols, 5));
  test::expect_same_bits([&] {
    std::vector<float> dtable(vocabulary * cols);
    std::vector<TypeParam> x(rows * cols);
    embedding(stream, view(tokens, {rows}), view(table, {vocabulary, cols}), view(x, {rows, cols}));
    embedding_backward(stream, view(tokens, {rows}), view(dx, {rows, cols}), view(dtable, {vocabulary, cols}),
                       view(workspace, {rows + vocabulary + 1}));
    return test::bytes_of(x) + test::bytes_of(dtable);
  });
}

TEST(Embedding, Errors) {
  std::vector<float> table(6), x(4);
  std::vector<bf16> half(4);
  std::vector<int32_t> tokens{0, 3}, fine{0, 2}, negative{-1, 0}, workspace(2 + 3 + 1);
  const Tensor words = view(table, {3, 2}), out = view(x, {2, 2}), good = view(fine, {2}), work = view(workspace, {6});
  EXPECT_ERROR(internal, "tokens[1] is 3", embedding(stream, view(tokens, {2}), words, out));
  EXPECT_ERROR(internal, "tokens[0] is -1", embedding(stream, view(negative, {2}), words, out));
  EXPECT_ERROR(internal, "tokens is", embedding(stream, good.slice(0, 1), words, out));
  EXPECT_ERROR(internal, "table", embedding(stream, good, words, view(half, {2, 2})));
  EXPECT_ERROR(internal, "tokens[1] is 3", embedding_backward(stream, view(tokens, {2}), out, words, work));
  EXPECT_ERROR(internal, "dtable", embedding_backward(stream, good, out, view(x, {4, 1}), work));
  EXPECT_ERROR(internal, "workspace", embedding_backward(stream, good, out, words, work.slice(0, 5)));
  EXPECT_ERROR(internal, "rows[1] is 3", gather_rows(stream, words, view(tokens, {2}), out));
  EXPECT_ERROR(internal, "x is", gather_rows(stream, view(x, {4, 1}), good, out));
  EXPECT_ERROR(internal, "rows[1] is 3", scatter_add_rows(stream, out, view(tokens, {2}), words));
  EXPECT_ERROR(internal, "dx", scatter_add_rows(stream, out, good, view(half, {2, 2})));
}

}  // namespace
}  // namespace notellm

#include <algorithm>

#include "kernels/embedding.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::view;

Stream stream;

// The gradient of embedding.
void embedding_backward(const std::vector<int32_t>& tokens, Tensor dx, Tensor dtable) {
  GroupedRows groups;
  groups.set(tokens);
  scatter_add_rows(stream, dx, groups.view(), dtable);
}

TEST(Embedding, ByHand) {
  std::vector<float> table{0, 1, 10, 11, 20, 21}, x(6), dx{1, 2, 3, 4, 5, 6}, dtable{100, 100, 100, 100, 100, 100};
  std::vector<int32_t> tokens{2, 0, 2};
  embedding(stream, view(tokens, {3}), view(table, {3, 2}), view(x, {3, 2}));
  EXPECT_EQ(x, (std::vector<float>{20, 21, 0, 1, 20, 21}));
  embedding_backward(tokens, view(dx, {3, 2}), view(dtable, {3, 2}));
  EXPECT_EQ(dtable, (std::vector<float>{103, 104, 100, 100, 106, 108}));
  std::vector<float> y(4), dy{1, 1, 2, 2}, back{0, 0, 0, 0, 7, 7};
  std::vector<int32_t> rows{1, 1}, target{2, 0};
  gather_rows(stream, view(table, {3, 2}), view(rows, {2}), view(y, {2, 2}));
  EXPECT_EQ(y, (std::vector<float>{10, 11, 10, 11}));
  scatter_add_rows(stream, view(dy, {2, 2}), {view(target, {2}), {}, {}}, view(back, {3, 2}));
  EXPECT_EQ(back, (std::vector<float>{2, 2, 0, 0, 8, 8}));
}

template <class T>
class EmbeddingOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(EmbeddingOf, Types);

template <class T>
void check(int64_t rows, int64_t vocabulary, int64_t cols) {
  SCOPED_TRACE(fmt::format("{} rows, {} tokens, {} columns", rows, vocabulary, cols));
  std::vector<T> table = cast<T>(normal(vocabulary * cols, 1)), x(rows * cols), dx = cast<T>(normal(rows * cols, 2));
  std::vector<int32_t> tokens = test::integers(rows, static_cast<int32_t>(vocabulary), 3);
  std::vector<float> dtable = normal(vocabulary * cols, 4);
  std::vector<double> exact = test::widen(dtable), magnitude = exact;
  for (double& m : magnitude) m = std::fabs(m);
  embedding(stream, view(tokens, {rows}), view(table, {vocabulary, cols}), view(x, {rows, cols}));
  embedding_backward(tokens, view(dx, {rows, cols}), view(dtable, {vocabulary, cols}));
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

TYPED_TEST(EmbeddingOf, RowsAndTheirGradient) {
  const int64_t n = 90, m = 40, cols = 300;
  std::vector<TypeParam> x = cast<TypeParam>(normal(n * cols, 1)), y(m * cols),
                         dx = cast<TypeParam>(normal(n * cols, 2));
  std::vector<int32_t> rows = test::integers(n, static_cast<int32_t>(n), 3);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  ASSERT_GT(std::ssize(rows), m);
  rows.resize(m);
  std::reverse(rows.begin(), rows.end());
  gather_rows(stream, view(x, {n, cols}), view(rows, {m}), view(y, {m, cols}));
  std::vector<TypeParam> expected = dx;
  scatter_add_rows(stream, view(y, {m, cols}), {view(rows, {m}), {}, {}}, view(dx, {n, cols}));
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(static_cast<float>(y[r * cols + c]), static_cast<float>(x[rows[r] * cols + c]));
      TypeParam& sum = expected[rows[r] * cols + c];
      sum = TypeParam(static_cast<float>(sum) + static_cast<float>(y[r * cols + c]));
    }
  EXPECT_TRUE(test::bytes_of(dx) == test::bytes_of(expected));
}

// A rank's part of a table: tokens of other parts have rows of zeros, and give nothing back.
TEST(Embedding, TokensOfOtherParts) {
  std::vector<float> table{1, 2, 3, 4}, x(8, 9.0f), dtable(4, 10.0f);
  const std::vector<int32_t> tokens{-1, 1, -1, 0};
  embedding(stream, Tensor::of(tokens.data(), {4}), view(table, {2, 2}), view(x, {4, 2}));
  EXPECT_EQ(x, (std::vector<float>{0, 0, 3, 4, 0, 0, 1, 2}));
  embedding_backward(tokens, view(x, {4, 2}), view(dtable, {2, 2}));
  EXPECT_EQ(dtable, (std::vector<float>{11, 12, 13, 14}));
  embedding_backward({-1, -1, -1, -1}, view(x, {4, 2}), view(dtable, {2, 2}));
  EXPECT_EQ(dtable, (std::vector<float>{11, 12, 13, 14}));
}

// 256 + 1 + … + 1: a bf16 that is rounded after each addition would stay at 256.
TEST(Embedding, SumsInF32) {
  std::vector<bf16> dy(6, bf16(1.0f)), dx{bf16(0.0f), bf16(256.0f)};
  embedding_backward({1, 1, 1, 1, 1, 1}, view(dy, {6, 1}), view(dx, {2, 1}));
  EXPECT_EQ(static_cast<float>(dx[0]), 0.0f);
  EXPECT_EQ(static_cast<float>(dx[1]), 262.0f);
}

TEST(GroupedRows, AreAscendingAndStable) {
  GroupedRows groups;
  for (const std::vector<int32_t>& targets : {std::vector<int32_t>{7, 2, 7, 0, 2, 7}, {}, {3}}) {
    groups.set(targets);
    const RowGroups g = groups.view();
    const auto list = [](const Tensor& t) { return std::vector<int32_t>(t.as<int32_t>(), t.as<int32_t>() + t.size()); };
    if (targets.size() == 6) {
      EXPECT_EQ(list(g.target), (std::vector<int32_t>{0, 2, 7}));
      EXPECT_EQ(list(g.begin), (std::vector<int32_t>{0, 1, 3, 6}));
      EXPECT_EQ(list(g.rows), (std::vector<int32_t>{3, 1, 4, 0, 2, 5}));
    } else {
      EXPECT_EQ(list(g.target), targets);
      EXPECT_EQ(g.begin.size(), std::ssize(targets) + 1);
      EXPECT_EQ(g.rows.size(), std::ssize(targets));
    }
  }
  groups.set(std::vector<int32_t>{-1, 4, -1, 1, 4});
  EXPECT_EQ(groups.view().rows.size(), 3);
  EXPECT_EQ(groups.view().rows.as<int32_t>()[0], 3);
  EXPECT_ERROR(internal, "target -3", groups.set(std::vector<int32_t>{1, -3}));
}

TYPED_TEST(EmbeddingOf, SameBitsForAnyThreads) {
  const int64_t rows = 900, vocabulary = 200, cols = 65;
  std::vector<int32_t> tokens = test::integers(rows, vocabulary, 3);
  std::vector<TypeParam> dx = cast<TypeParam>(normal(rows * cols, 2)),
                         table = cast<TypeParam>(normal(vocabulary * cols, 5));
  test::expect_same_bits([&] {
    std::vector<float> dtable(vocabulary * cols);
    std::vector<TypeParam> x(rows * cols);
    embedding(stream, view(tokens, {rows}), view(table, {vocabulary, cols}), view(x, {rows, cols}));
    embedding_backward(tokens, view(dx, {rows, cols}), view(dtable, {vocabulary, cols}));
    return test::bytes_of(x) + test::bytes_of(dtable);
  });
}

TEST(Embedding, Errors) {
  std::vector<float> table(6), x(4);
  std::vector<bf16> half(4);
  std::vector<int32_t> tokens{0, 3}, fine{0, 2}, negative{-2, 0}, begin{0, 1, 2}, early{0, 1, 1}, back{0, 3, 2};
  const Tensor words = view(table, {3, 2}), out = view(x, {2, 2}), good = view(fine, {2}), starts = view(begin, {3});
  EXPECT_ERROR(internal, "tokens[1] is 3", embedding(stream, view(tokens, {2}), words, out));
  EXPECT_ERROR(internal, "tokens[0] is -2", embedding(stream, view(negative, {2}), words, out));
  EXPECT_ERROR(internal, "tokens is", embedding(stream, good.slice(0, 1), words, out));
  EXPECT_ERROR(internal, "table", embedding(stream, good, words, view(half, {2, 2})));
  EXPECT_ERROR(internal, "rows[1] is 3", gather_rows(stream, words, view(tokens, {2}), out));
  EXPECT_ERROR(internal, "x is", gather_rows(stream, view(x, {4, 1}), good, out));
  const auto scatter = [&](const RowGroups& groups, Tensor dx) { scatter_add_rows(stream, out, groups, dx); };
  EXPECT_ERROR(internal, "target[1] is 3", scatter({view(tokens, {2}), {}, {}}, words));
  EXPECT_ERROR(internal, "target is", scatter({good.slice(0, 1), {}, {}}, words));
  EXPECT_ERROR(internal, "dx", scatter({good, {}, {}}, view(half, {2, 2})));
  EXPECT_ERROR(internal, "dx", scatter({good, {}, {}}, view(x, {4, 1})));
  EXPECT_ERROR(internal, "begin", scatter({good, good, good}, words));
  EXPECT_ERROR(internal, "rows", scatter({good, starts, starts}, words));
  EXPECT_ERROR(internal, "there are 2", scatter({good, view(early, {3}), good}, words));
  EXPECT_ERROR(internal, "row 1 of the groups is 2", scatter({good, starts, good}, words));
  EXPECT_ERROR(internal, "group 1 begins at 3", scatter({good, view(back, {3}), good}, words));
}

}  // namespace
}  // namespace notellm

// Rows by index on CUDA: gathered exactly; added by groups against double, short groups and long ones.
#include <numeric>

#include "kernels/embedding.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::OnGpu;

std::vector<int32_t> list(const Tensor& t) { return {t.as<int32_t>(), t.as<int32_t>() + t.size()}; }

template <class T>
class CudaEmbedding : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaEmbedding, Types);

// The table and x begin `table_skip` and `x_skip` elements behind an aligned address.
template <class T>
void check_gather(int64_t rows, int64_t vocabulary, int64_t cols, int64_t table_skip = 0, int64_t x_skip = 0) {
  SCOPED_TRACE(fmt::format("[{}, {}] of {} rows, at {} and {}", rows, cols, vocabulary, table_skip, x_skip));
  Stream stream(Device::cuda);
  const int64_t table_size = vocabulary * cols, x_size = rows * cols;
  const std::vector<T> table = cast<T>(normal(table_skip + table_size, 1));
  std::vector<int32_t> tokens = test::integers(rows, static_cast<int32_t>(vocabulary), 3);
  for (int64_t r = 0; r < rows; r += 3) tokens[r] = -1;  // of another part of the table
  const OnGpu<T> table_gpu(stream, table), x_gpu(stream, std::vector<T>(x_skip + x_size, T(NAN)));
  const OnGpu<int32_t> tokens_gpu(stream, tokens);
  const auto matrix = [&](const OnGpu<T>& t, int64_t skip, int64_t n) {
    return t.tensor({skip + n * cols}).slice(skip, skip + n * cols).reshape({n, cols});
  };
  embedding(stream, tokens_gpu.tensor({rows}), matrix(table_gpu, table_skip, vocabulary), matrix(x_gpu, x_skip, rows));
  const std::vector<T> x = x_gpu.download();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      ASSERT_EQ(static_cast<float>(x[x_skip + r * cols + c]),
                tokens[r] < 0 ? 0 : static_cast<float>(table[table_skip + tokens[r] * cols + c]))
          << r << " " << c;
}

TYPED_TEST(CudaEmbedding, Gather) {
  for (int64_t cols : {1, 3, 65, 64, 100, 2056})
    for (int64_t rows : {0, 1, 90}) check_gather<TypeParam>(rows, 40, cols);
  for (int64_t table_skip : {0, 1, 2})
    for (int64_t x_skip : {0, 1, 2}) check_gather<TypeParam>(5, 8, 64, table_skip, x_skip);  // no packs
}

// tokens: the target of each row; grouped: by GroupedRows, else they are distinct.
template <class T, class Sum>
void check_scatter(const std::vector<int32_t>& tokens, bool grouped, int64_t vocabulary, int64_t cols) {
  SCOPED_TRACE(fmt::format("{} rows, {} tokens, {} columns", tokens.size(), vocabulary, cols));
  Stream stream(Device::cuda);
  const auto rows = std::ssize(tokens);
  const std::vector<T> dy = cast<T>(normal(rows * cols, 2));
  const std::vector<Sum> before = cast<Sum>(normal(vocabulary * cols, 4));
  std::vector<Sum> dx;
  const auto run = [&] {
    GroupedRows groups;
    groups.set(tokens);
    const RowGroups host = groups.view();
    const OnGpu<int32_t> target(stream, grouped ? list(host.target) : tokens), begin(stream, list(host.begin)),
        row(stream, list(host.rows));
    const OnGpu<T> dy_gpu(stream, dy);
    const OnGpu<Sum> dx_gpu(stream, before);
    const int64_t count = grouped ? host.target.size() : rows;
    RowGroups on_gpu{target.tensor({count}), {}, {}};
    if (grouped) on_gpu = {target.tensor({count}), begin.tensor({count + 1}), row.tensor({host.rows.size()})};
    scatter_add_rows(stream, dy_gpu.tensor({rows, cols}), on_gpu, dx_gpu.tensor({vocabulary, cols}));
    dx = dx_gpu.download();
    return test::bytes_of(dx);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  std::vector<double> exact = test::widen(before), magnitude = exact;
  for (double& m : magnitude) m = std::fabs(m);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols && tokens[r] >= 0; ++c) {
      exact[tokens[r] * cols + c] += static_cast<float>(dy[r * cols + c]);
      magnitude[tokens[r] * cols + c] += std::fabs(static_cast<float>(dy[r * cols + c]));
    }
  for (size_t i = 0; i < exact.size(); ++i)
    test::expect_close(dx[i], exact[i], magnitude[i], static_cast<double>(rows) + 1);
}

TYPED_TEST(CudaEmbedding, ScatterByGroups) {
  for (int64_t cols : {1, 3, 64, 65, 100, 300}) {
    check_scatter<TypeParam, float>({}, true, 3, cols);
    check_scatter<TypeParam, float>({0}, true, 1, cols);
    check_scatter<TypeParam, float>({-1, -1}, true, 1, cols);
    check_scatter<TypeParam, float>({-1, 2, 0, -1, 2}, true, 3, cols);
    check_scatter<TypeParam, float>(test::integers(90, 40, 3), true, 40, cols);
    check_scatter<TypeParam, TypeParam>(test::integers(90, 40, 3), true, 40, cols);
    // Groups longer than one warp's share, at the ends and between short ones.
    std::vector<int32_t> tokens = test::integers(60, 12, 3);
    for (int i = 0; i < 300; ++i) tokens.push_back(i % 3 == 0 ? 0 : i % 3 == 1 ? 5 : 12);
    check_scatter<TypeParam, float>(tokens, true, 13, cols);
  }
}

TYPED_TEST(CudaEmbedding, ScatterOfDistinctRows) {
  std::vector<int32_t> rows(37);
  std::iota(rows.rbegin(), rows.rend(), 2);
  for (int64_t cols : {1, 65, 64, 300}) check_scatter<TypeParam, TypeParam>(rows, false, 40, cols);
}

}  // namespace
}  // namespace notellm

// Cross entropy on CUDA against double: blocks of 256 and 1,024 threads, rows longer than the registers hold, padding.
#include <limits>

#include "kernels/cross_entropy.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::normal;
using test::OnGpu;

template <class T>
class CudaCrossEntropy : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaCrossEntropy, Types);

template <class T>
void check(int64_t rows, int64_t cols, int64_t in_use, float deviation, float mean = 0) {
  SCOPED_TRACE(fmt::format("[{}, {} of {}] {} ± {}", rows, in_use, cols, mean, deviation));
  Stream stream(Device::cuda);
  std::vector<float> logits = normal(rows * cols, 1, deviation);
  for (float& x : logits) x += mean;
  const std::vector<int32_t> labels = test::integers(rows, static_cast<int32_t>(in_use), 2);
  const float scale = 0.125f;
  std::vector<float> loss, loss_only;
  std::vector<T> d;
  const auto run = [&] {
    const OnGpu<float> logits_gpu(stream, logits), loss_gpu(stream, std::vector<float>(rows, NAN)),
        loss_only_gpu(stream, std::vector<float>(rows, NAN));
    const OnGpu<T> d_gpu(stream, std::vector<T>(rows * cols, T(NAN)));
    const OnGpu<int32_t> labels_gpu(stream, labels);
    const Tensor from = logits_gpu.tensor({rows, cols}), label = labels_gpu.tensor({rows});
    cross_entropy(stream, from, label, in_use, scale, loss_gpu.tensor({rows}), d_gpu.tensor({rows, cols}));
    cross_entropy(stream, from, label, in_use, scale, loss_only_gpu.tensor({rows}), {});
    loss = loss_gpu.download();
    loss_only = loss_only_gpu.download();
    d = d_gpu.download();
    // In place.
    if constexpr (std::is_same_v<T, float>) {
      cross_entropy(stream, from, label, in_use, scale, loss_gpu.tensor({rows}), from);
      EXPECT_TRUE(test::bytes_of(logits_gpu.download()) == test::bytes_of(d));
    }
    return test::bytes_of(loss, loss_only) + test::bytes_of(d);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits.data() + r * cols;
    double best = -INFINITY, sum = 0;
    for (int64_t v = 0; v < in_use; ++v) best = std::max<double>(best, row[v]);
    for (int64_t v = 0; v < in_use; ++v) sum += std::exp(row[v] - best);
    const double lse = best + std::log(sum), range = 12.0 * deviation;
    // exp multiplies two roundings, of logit − maximum and of its product with log₂ e, by its size, at most `range`;
    // the sum rounds in_use times.
    const double roundings = static_cast<double>(in_use) + 2 * range + 12;
    test::expect_close(loss[r], lse - row[labels[r]], 1 + range, roundings);
    test::expect_close(loss_only[r], lse - row[labels[r]], 1 + range, roundings);
    for (int64_t v = 0; v < cols; ++v) {
      const double p = v < in_use ? std::exp(row[v] - lse) : 0.0;
      test::expect_close(d[r * cols + v], scale * (p - (v == labels[r])), scale * (p + (v == labels[r])), roundings);
    }
  }
}

TYPED_TEST(CudaCrossEntropy, AgainstDouble) {
  for (float deviation : {1.0f, 10.0f}) {
    check<TypeParam>(0, 5, 5, deviation);
    check<TypeParam>(1, 1, 1, deviation);
    check<TypeParam>(3, 7, 5, deviation);
    check<TypeParam>(20, 64, 64, deviation);
    check<TypeParam>(5, 100, 97, deviation);
    check<TypeParam>(3, 2050, 2041, deviation);
    check<TypeParam>(2, 9001, 9000, deviation);
    check<TypeParam>(2, 8256, 8193, deviation);
    check<TypeParam>(2, 33024, 33001, deviation);
    for (float mean : {-300.0f, 300.0f}) check<TypeParam>(3, 100, 97, deviation, mean);  // whose exp is 0, or ∞
  }
}

TEST(CudaCrossEntropy, ExtremeLogits) {
  Stream stream(Device::cuda);
  const float infinity = std::numeric_limits<float>::infinity();
  const OnGpu<float> logits(stream, {1e4f, -1e4f, 0, /**/ -infinity, 2, 2, /**/ std::nanf(""), 0, 0, /**/ 7, 7, 7}),
      loss_gpu(stream, {-1, -1, -1, -1});
  const OnGpu<int32_t> labels(stream, {1, 1, 1, 0});
  cross_entropy(stream, logits.tensor({4, 3}), labels.tensor({4}), 3, 1.0f, loss_gpu.tensor({4}),
                logits.tensor({4, 3}));
  const std::vector<float> loss = loss_gpu.download(), d = logits.download();
  EXPECT_EQ(loss[0], 2e4f);
  EXPECT_EQ(d[0], 1.0f);
  EXPECT_EQ(d[1], -1.0f);
  EXPECT_NEAR(loss[1], std::log(2.0f), 8 * test::f32_roundoff);
  EXPECT_EQ(d[3], 0.0f);
  EXPECT_NEAR(d[5], 0.5f, 8 * test::f32_roundoff);
  EXPECT_TRUE(std::isnan(loss[2])) << "NaN must be seen";
  EXPECT_NEAR(loss[3], std::log(3.0f), 8 * test::f32_roundoff);
}

}  // namespace
}  // namespace notellm

// Cross entropy by shares of the vocabulary on CUDA: together what double says of all columns.
#include "kernels/cross_entropy_share.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::normal;
using test::OnGpu;

template <class T>
void check(int64_t rows, int64_t shares, int64_t columns, int64_t in_use, float deviation = 5) {
  SCOPED_TRACE(fmt::format("[{}, {} · {}], {} in use", rows, shares, columns, in_use));
  Stream stream(Device::cuda);
  const int64_t all = shares * columns;
  const std::vector<float> logits = normal(rows * all, 1, deviation);
  const std::vector<int32_t> labels = test::integers(rows, static_cast<int32_t>(in_use), 2);
  const float scale = 0.125f;
  std::vector<T> gradient(rows * all);
  std::vector<float> loss;
  const auto run = [&] {
    const OnGpu<float> sums(stream, std::vector<float>(shares * rows * 3, NAN)),
        losses(stream, std::vector<float>(rows, NAN));
    const Tensor every = sums.tensor({shares, rows * 3});
    for (const bool second : {false, true})
      for (int64_t s = 0; s < shares; ++s) {
        std::vector<float> part(rows * columns);
        std::vector<int32_t> own(rows);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(logits.begin() + r * all + s * columns, columns, part.begin() + r * columns);
          own[r] = labels[r] / columns == s ? static_cast<int32_t>(labels[r] % columns) : -1;
        }
        const OnGpu<float> x(stream, part);
        const OnGpu<int32_t> label(stream, own);
        const int64_t own_in_use = std::clamp<int64_t>(in_use - s * columns, 0, columns);
        if (!second) {
          cross_entropy_sums(stream, x.tensor({rows, columns}), label.tensor({rows}), own_in_use,
                             every.slice(s, s + 1).reshape({rows, 3}));
          stream.synchronize();
          continue;
        }
        const OnGpu<T> d(stream, std::vector<T>(rows * columns, T(NAN)));
        cross_entropy_share(stream, x.tensor({rows, columns}), label.tensor({rows}), own_in_use, every, scale,
                            losses.tensor({rows}), d.tensor({rows, columns}));
        const std::vector<T> found = d.download();
        for (int64_t r = 0; r < rows; ++r)
          std::copy_n(found.begin() + r * columns, columns, gradient.begin() + r * all + s * columns);
        if constexpr (std::is_same_v<T, float>) {
          cross_entropy_share(stream, x.tensor({rows, columns}), label.tensor({rows}), own_in_use, every, scale,
                              losses.tensor({rows}), x.tensor({rows, columns}));
          EXPECT_TRUE(test::bytes_of(x.download()) == test::bytes_of(found)) << "in place";
        }
      }
    loss = losses.download();
    return test::bytes_of(loss) + test::bytes_of(gradient);
  };
  EXPECT_TRUE(run() == run()) << "the same bits again";
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits.data() + r * all;
    double sum = 0;
    for (int64_t v = 0; v < in_use; ++v) sum += std::exp(double(row[v]));
    // As test_cross_entropy_cuda, and twice a product by e^(part's maximum − maximum) more.
    const double lse = std::log(sum), range = 12 * deviation, roundings = static_cast<double>(in_use) + 4 * range + 12;
    test::expect_close(loss[r], lse - row[labels[r]], 1 + range, roundings);
    for (int64_t v = 0; v < all; ++v) {
      const double p = v < in_use ? std::exp(row[v] - lse) : 0.0;
      test::expect_close(gradient[r * all + v], scale * (p - (v == labels[r])), scale * (p + (v == labels[r])),
                         roundings);
    }
  }
}

TEST(CudaCrossEntropyShare, AgainstDouble) {
  check<float>(0, 2, 5, 10);
  check<float>(3, 1, 7, 5);
  check<bf16>(4, 2, 9, 18);
  check<float>(5, 4, 64, 130);  // the last share is all padding
  check<bf16>(3, 2, 2048, 4000);
  check<float>(2, 2, 1030, 2060);
  check<float>(5, 2, 40, 78, 50);  // e^logit alone is no f32
}

}  // namespace
}  // namespace notellm

// Cross entropy by shares of the vocabulary, against the op that has all of it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cross_entropy.h"
#include "kernels/cross_entropy_share.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

using test::normal;
using test::view;

Stream stream;

TEST(CrossEntropyShare, ByHand) {
  // Two shares: logits log 1, log 3 and log 4, a padding column. Softmax 1/8, 3/8, 4/8.
  std::vector<float> left{0, std::log(3.0f)}, right{std::log(4.0f), 50}, sums(6), loss(1), d(2);
  std::vector<int32_t> in_left{1}, elsewhere{-1};
  cross_entropy_sums(stream, view(left, {1, 2}), view(in_left, {1}), 2, view(sums, {2, 3}).slice(0, 1));
  cross_entropy_sums(stream, view(right, {1, 2}), view(elsewhere, {1}), 1, view(sums, {2, 3}).slice(1, 2));
  EXPECT_FLOAT_EQ(sums[0], std::log(3.0f));
  EXPECT_FLOAT_EQ(sums[1], 4.0f / 3.0f);
  EXPECT_FLOAT_EQ(sums[2], std::log(3.0f));
  EXPECT_FLOAT_EQ(sums[3], std::log(4.0f));
  EXPECT_FLOAT_EQ(sums[4], 1.0f);
  EXPECT_EQ(sums[5], -std::numeric_limits<float>::infinity());
  cross_entropy_share(stream, view(left, {1, 2}), view(in_left, {1}), 2, view(sums, {2, 3}), 16, view(loss, {1}),
                      view(d, {1, 2}));
  EXPECT_FLOAT_EQ(loss[0], std::log(8.0f / 3.0f));
  EXPECT_FLOAT_EQ(d[0], 2.0f);
  EXPECT_FLOAT_EQ(d[1], 6.0f - 16.0f);
  cross_entropy_share(stream, view(right, {1, 2}), view(elsewhere, {1}), 1, view(sums, {2, 3}), 16, view(loss, {1}),
                      view(right, {1, 2}));  // in place
  EXPECT_FLOAT_EQ(loss[0], std::log(8.0f / 3.0f));
  EXPECT_FLOAT_EQ(right[0], 8.0f);
  EXPECT_EQ(right[1], 0.0f);
}

// `shares` equal shares of `columns` columns, of which `in_use` are no padding, against double; and the same bits for
// any number of threads.
template <class T>
void check(int64_t rows, int64_t shares, int64_t columns, int64_t in_use) {
  SCOPED_TRACE(fmt::format("[{}, {} · {}], {} in use", rows, shares, columns, in_use));
  const int64_t all = shares * columns;
  const std::vector<float> logits = normal(rows * all, 1, 5);
  const std::vector<int32_t> labels = test::integers(rows, static_cast<int32_t>(in_use), 2);
  const float scale = 0.125f;
  std::vector<T> gradient(rows * all);
  std::vector<float> loss(rows);
  test::expect_same_bits([&] {
    std::vector<float> sums(shares * rows * 3), part(rows * columns);
    std::vector<int32_t> own(rows);
    std::vector<T> d(rows * columns);
    const Tensor every = view(sums, {shares, rows * 3});
    for (const bool second : {false, true})
      for (int64_t s = 0; s < shares; ++s) {
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(logits.begin() + r * all + s * columns, columns, part.begin() + r * columns);
          own[r] = labels[r] / columns == s ? static_cast<int32_t>(labels[r] % columns) : -1;
        }
        const int64_t own_in_use = std::clamp<int64_t>(in_use - s * columns, 0, columns);
        if (!second) {
          cross_entropy_sums(stream, view(part, {rows, columns}), view(own, {rows}), own_in_use,
                             every.slice(s, s + 1).reshape({rows, 3}));
          continue;
        }
        cross_entropy_share(stream, view(part, {rows, columns}), view(own, {rows}), own_in_use, every, scale,
                            view(loss, {rows}), view(d, {rows, columns}));
        for (int64_t r = 0; r < rows; ++r)
          std::copy_n(d.begin() + r * columns, columns, gradient.begin() + r * all + s * columns);
      }
    return test::bytes_of(loss) + test::bytes_of(gradient);
  });
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits.data() + r * all;
    double sum = 0;
    for (int64_t v = 0; v < in_use; ++v) sum += std::exp(double(row[v]));
    // As the op over all columns; and a product by e^(share's maximum − maximum) more.
    const double lse = std::log(sum), range = 60, roundings = static_cast<double>(in_use) + 2 * range + 8;
    test::expect_close(loss[r], lse - row[labels[r]], 1 + range, roundings);
    for (int64_t v = 0; v < all; ++v) {
      const double p = v < in_use ? std::exp(row[v] - lse) : 0.0;
      test::expect_close(gradient[r * all + v], scale * (p - (v == labels[r])), scale * (p + (v == labels[r])),
                         roundings);
    }
  }
}

TEST(CrossEntropyShare, AgainstDouble) {
  check<float>(0, 2, 5, 10);
  check<float>(3, 1, 7, 5);
  check<bf16>(4, 2, 9, 18);
  check<float>(5, 4, 64, 130);  // the last share is all padding
  check<bf16>(33, 3, 700, 1990);
}

TEST(CrossEntropyShare, NanIsSeen) {
  std::vector<float> logits{1, std::nanf("")}, sums(3), loss(1), d(2);
  std::vector<int32_t> label{0};
  cross_entropy_sums(stream, view(logits, {1, 2}), view(label, {1}), 2, view(sums, {1, 3}));
  cross_entropy_share(stream, view(logits, {1, 2}), view(label, {1}), 2, view(sums, {1, 3}), 1, view(loss, {1}),
                      view(d, {1, 2}));
  EXPECT_TRUE(std::isnan(loss[0]));
}

TEST(CrossEntropyShare, Errors) {
  std::vector<float> logits(4), sums(6), loss(2), d(4);
  std::vector<int32_t> labels{0, 2}, below{0, -2}, fine{0, -1};
  const Tensor x = view(logits, {2, 2}), s = view(sums, {2, 3}), good = view(fine, {2});
  EXPECT_ERROR(internal, "label 2 of row 1", cross_entropy_sums(stream, x, view(labels, {2}), 2, s));
  EXPECT_ERROR(internal, "label -2 of row 1", cross_entropy_sums(stream, x, view(below, {2}), 2, s));
  EXPECT_ERROR(internal, "3 of 2 columns", cross_entropy_sums(stream, x, good, 3, s));
  EXPECT_ERROR(internal, "sums is", cross_entropy_sums(stream, x, good, 2, view(sums, {3, 2})));
  const auto share = [&](Tensor sums, Tensor loss, Tensor d) {
    cross_entropy_share(stream, x, good, 2, sums, 1, loss, d);
  };
  EXPECT_ERROR(internal, "sums is", share(s, view(loss, {2}), view(d, {2, 2})));
  EXPECT_ERROR(internal, "loss is", share(view(sums, {1, 6}), view(loss, {1, 2}), view(d, {2, 2})));
  EXPECT_ERROR(internal, "dlogits is", share(view(sums, {1, 6}), view(loss, {2}), view(d, {4})));
}

}  // namespace
}  // namespace notellm

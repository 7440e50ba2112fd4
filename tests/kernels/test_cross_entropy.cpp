#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/cross_entropy.h"
#include "tests/kernels/op_support.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"

namespace notellm {
namespace {

using test::normal;
using test::view;

Stream stream;

// log Σ exp(logits[v]), v < in_use, in double.
double log_sum_exp(const float* logits, int64_t in_use) {
  double best = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t v = 0; v < in_use; ++v) best = std::max<double>(best, logits[v]);
  for (int64_t v = 0; v < in_use; ++v) sum += std::exp(logits[v] - best);
  return best + std::log(sum);
}

TEST(CrossEntropy, ByHand) {
  // exp: 1, 3, 4 and a padding column that would matter: softmax 1/8, 3/8, 4/8.
  std::vector<float> logits{0, std::log(3.0f), std::log(4.0f), 50}, loss(1), d(4, -1.0f);
  std::vector<int32_t> labels{1};
  cross_entropy(stream, view(logits, {1, 4}), view(labels, {1}), 3, 16.0f, view(loss, {1}), view(d, {1, 4}));
  EXPECT_FLOAT_EQ(loss[0], std::log(8.0f / 3.0f));
  EXPECT_FLOAT_EQ(d[0], 2.0f);
  EXPECT_FLOAT_EQ(d[1], 6.0f - 16.0f);
  EXPECT_FLOAT_EQ(d[2], 8.0f);
  EXPECT_EQ(d[3], 0.0f);
}

template <class T>
class CrossEntropyOf : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CrossEntropyOf, Types);

template <class T>
void check(int64_t rows, int64_t cols, int64_t in_use, float deviation) {
  SCOPED_TRACE(fmt::format("[{}, {} of {}] {}", rows, in_use, cols, deviation));
  std::vector<float> logits = normal(rows * cols, 1, deviation), loss(rows), loss_only(rows);
  std::vector<int32_t> labels = test::integers(rows, static_cast<int32_t>(in_use), 2);
  std::vector<T> d(rows * cols);
  const float scale = 0.125f;
  cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), in_use, scale, view(loss, {rows}),
                view(d, {rows, cols}));
  cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), in_use, scale, view(loss_only, {rows}), {});
  EXPECT_EQ(loss.size(), loss_only.size());
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits.data() + r * cols;
    const double lse = log_sum_exp(row, in_use), range = 12.0 * deviation;
    // exp multiplies the rounding of logit − maximum by its size, at most `range`; the sum rounds in_use times.
    const double roundings = static_cast<double>(in_use) + range + 8;
    test::expect_close(loss[r], lse - row[labels[r]], 1 + range, roundings);
    test::expect_close(loss_only[r], lse - row[labels[r]], 1 + range, roundings);
    for (int64_t v = 0; v < cols; ++v) {
      const double p = v < in_use ? std::exp(row[v] - lse) : 0.0;
      test::expect_close(d[r * cols + v], scale * (p - (v == labels[r])), scale * (p + (v == labels[r])), roundings);
    }
  }
}

TYPED_TEST(CrossEntropyOf, AgainstDouble) {
  for (float deviation : {1.0f, 10.0f}) {
    check<TypeParam>(0, 5, 5, deviation);
    check<TypeParam>(1, 1, 1, deviation);
    check<TypeParam>(3, 7, 5, deviation);
    check<TypeParam>(20, 64, 64, deviation);
    check<TypeParam>(33, 2001, 1990, deviation);
  }
}

TYPED_TEST(CrossEntropyOf, SameBitsForAnyThreads) {
  const int64_t rows = 40, cols = 1111;
  std::vector<int32_t> labels = test::integers(rows, cols, 2);
  test::expect_same_bits([&] {
    std::vector<float> logits = normal(rows * cols, 1), loss(rows);
    std::vector<TypeParam> d(rows * cols);
    cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), cols, 1.0f, view(loss, {rows}),
                  view(d, {rows, cols}));
    return test::bytes_of(d) + test::bytes_of(loss);
  });
}

TEST(CrossEntropy, InPlace) {
  const int64_t rows = 6, cols = 37;
  std::vector<float> logits = normal(rows * cols, 1), loss(rows), d(rows * cols), loss_in_place(rows);
  std::vector<int32_t> labels = test::integers(rows, 30, 2);
  cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), 30, 2.0f, view(loss, {rows}),
                view(d, {rows, cols}));
  cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), 30, 2.0f, view(loss_in_place, {rows}),
                view(logits, {rows, cols}));
  EXPECT_EQ(logits, d);
  EXPECT_EQ(loss, loss_in_place);
}

TEST(CrossEntropy, GradientIsTheDerivative) {
  const int64_t cols = 9;
  std::vector<float> logits = normal(cols, 1), loss(1), d(cols);
  std::vector<int32_t> labels{4};
  cross_entropy(stream, view(logits, {1, cols}), view(labels, {1}), cols, 1.0f, view(loss, {1}), view(d, {1, cols}));
  std::vector<double> x = test::widen(logits);
  auto value = [&] {
    double sum = 0;
    for (double logit : x) sum += std::exp(logit);
    return std::log(sum) - x[4];
  };
  for (int64_t v = 0; v < cols; ++v) EXPECT_NEAR(d[v], test::difference(x, v, value), 1e-6);
}

TEST(CrossEntropy, ExtremeLogits) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits{1e4f, -1e4f, 0, /**/ -infinity, 2, 2, /**/ std::nanf(""), 0, 0}, loss(3), d(9);
  std::vector<int32_t> labels{1, 1, 1};
  cross_entropy(stream, view(logits, {3, 3}), view(labels, {3}), 3, 1.0f, view(loss, {3}), view(d, {3, 3}));
  EXPECT_EQ(loss[0], 2e4f);
  EXPECT_EQ(d[0], 1.0f);
  EXPECT_EQ(d[1], -1.0f);
  EXPECT_FLOAT_EQ(loss[1], std::log(2.0f));
  EXPECT_EQ(d[3], 0.0f);
  EXPECT_FLOAT_EQ(d[5], 0.5f);
  EXPECT_TRUE(std::isnan(loss[2])) << "NaN must be seen";
}

TEST(CrossEntropy, Golden) {
  NOTELLM_NEEDS_SHARED("golden/objective.json");
  const auto golden = nlohmann::json::parse(std::ifstream(test::shared_path("golden/objective.json")));
  ASSERT_GT(golden["cases"].size(), 0u);
  for (const auto& item : golden["cases"]) {
    const int64_t rows = item["logits_shape"][0], cols = item["logits_shape"][1];
    const double alpha = item["alpha"], share = alpha / (1 + alpha);
    std::vector<float> logits = item["logits"], loss(rows), d(rows * cols);
    std::vector<int32_t> labels = item["labels"];
    const std::vector<double> expected = item["grad_logits"];
    cross_entropy(stream, view(logits, {rows, cols}), view(labels, {rows}), cols,
                  static_cast<float>(share / static_cast<double>(rows)), view(loss, {rows}), view(d, {rows, cols}));
    double total = 0;
    for (float value : loss) total += value;
    EXPECT_NEAR(total / static_cast<double>(rows), item["loss_gen"].get<double>(), 1e-5) << item["name"];
    for (size_t i = 0; i < d.size(); ++i) EXPECT_NEAR(d[i], expected[i], 1e-5 * share) << item["name"] << " " << i;
  }
}

TEST(CrossEntropy, Errors) {
  std::vector<float> x(6), two(2);
  std::vector<int32_t> labels{0, 3}, fine{0, 1}, negative{-1, 0};
  const Tensor logits = view(x, {2, 3}), loss = view(two, {2}), good = view(fine, {2});
  EXPECT_ERROR(internal, "label 3 of row 1", cross_entropy(stream, logits, view(labels, {2}), 3, 1, loss, {}));
  EXPECT_ERROR(internal, "label 1 of row 1", cross_entropy(stream, logits, good, 1, 1, loss, {}));
  EXPECT_ERROR(internal, "label -1 of row 0", cross_entropy(stream, logits, view(negative, {2}), 3, 1, loss, {}));
  EXPECT_ERROR(internal, "4 of 3 columns", cross_entropy(stream, logits, good, 4, 1, loss, {}));
  EXPECT_ERROR(internal, "labels", cross_entropy(stream, logits, good.slice(0, 1), 3, 1, loss, {}));
  EXPECT_ERROR(internal, "loss", cross_entropy(stream, logits, good, 3, 1, logits, {}));
  EXPECT_ERROR(internal, "logits is i32", cross_entropy(stream, good, good, 1, 1, loss, {}));
  EXPECT_ERROR(internal, "dlogits", cross_entropy(stream, logits, good, 3, 1, loss, view(x, {3, 2})));
  std::vector<int32_t> whole(6);
  EXPECT_ERROR(internal, "f32 or bf16", cross_entropy(stream, logits, good, 3, 1, loss, view(whole, {2, 3})));
}

}  // namespace
}  // namespace notellm

#include "kernels/rank_count.h"

#include "kernels/checks.h"

namespace notellm {
namespace {

void expect_questions(const Tensor& scores, const Tensor& prior, int64_t priors, const Tensor& rows,
                      const Tensor& target) {
  expect("scores", scores, DType::f32, scores.rows(), scores.cols());
  if (!prior.empty()) expect("prior", prior, DType::f32, priors);
  expect("rows", rows, DType::i32, rows.rows());
  expect("target", target, DType::f32, rows.rows());
}

void expect_rows(const Tensor& rows, int64_t queries) {
  for (int64_t i = 0; i < rows.rows(); ++i)
    NOTELLM_CHECK(rows.as<int32_t>()[i] >= 0 && rows.as<int32_t>()[i] < queries, "row {} of question {}, but {} rows",
                  rows.as<int32_t>()[i], i, queries);
}

struct Counts {
  int32_t better = 0, ties = 0;
};

// The score of item x of a row; with a prior that is added.
struct Plain {
  const float* row;
  float operator()(int64_t x) const { return row[x]; }
};
struct WithPrior {
  const float *row, *prior;
  float operator()(int64_t x) const { return row[x] + prior[x]; }
};

template <class Score>
Counts compare(int64_t columns, float target, const Score score) {
  int32_t better = 0, ties = 0;
#pragma omp simd reduction(+ : better, ties)
  for (int64_t x = 0; x < columns; ++x) {
    better += !(score(x) <= target);
    ties += score(x) == target;
  }
  return {better, ties};
}

// What counts in one row, but for the two left out.
template <class Score>
Counts count_row(int64_t columns, int64_t first, float target, const int32_t* left_out, const Score score) {
  Counts counts = compare(columns, target, score);
  for (int k = 0; k < 2; ++k) {
    const int64_t x = left_out[k] - first;
    if (x < 0 || x >= columns || (k == 1 && left_out[1] == left_out[0])) continue;
    counts.better -= !(score(x) <= target);
    counts.ties -= score(x) == target;
  }
  return counts;
}

}  // namespace

void rank_count(Stream& stream, Tensor scores, int64_t columns, Tensor prior, int64_t first, Tensor rows, Tensor target,
                Tensor left_out, Tensor counts) {
  const int64_t n = rows.rows(), stride = scores.cols();
  NOTELLM_CHECK(0 <= columns && columns <= stride, "{} of {} columns", columns, stride);
  expect_questions(scores, prior, columns, rows, target);
  expect("left_out", left_out, DType::i32, n, 2);
  expect("counts", counts, DType::i32, n, 2);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::rank_count(stream, scores, columns, prior, first, rows, target, left_out, counts);
  expect_rows(rows, scores.rows());
  const float *all = scores.as<float>(), *added = prior.empty() ? nullptr : prior.as<float>();
  int32_t* to = counts.as<int32_t>();
#pragma omp parallel for schedule(static) if (n * columns > parallel_elements)
  for (int64_t i = 0; i < n; ++i) {
    const float* row = all + rows.as<int32_t>()[i] * stride;
    const float wanted = target.as<float>()[i];
    const int32_t* out = left_out.as<int32_t>() + 2 * i;
    const Counts found = added ? count_row(columns, first, wanted, out, WithPrior{row, added})
                               : count_row(columns, first, wanted, out, Plain{row});
    to[2 * i] += found.better;
    to[2 * i + 1] += found.ties;
  }
}

void pick_scores(Stream& stream, Tensor scores, Tensor prior, Tensor rows, Tensor target) {
  const int64_t n = rows.rows(), columns = scores.cols();
  expect_questions(scores, prior, n, rows, target);
  NOTELLM_CHECK(n <= columns, "{} questions, {} columns", n, columns);
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::pick_scores(stream, scores, prior, rows, target);
  expect_rows(rows, scores.rows());
  for (int64_t i = 0; i < n; ++i)
    target.as<float>()[i] =
        scores.as<float>()[rows.as<int32_t>()[i] * columns + i] + (prior.empty() ? 0.0f : prior.as<float>()[i]);
}

}  // namespace notellm

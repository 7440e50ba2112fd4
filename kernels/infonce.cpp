#include "kernels/infonce.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/checks.h"
#include "kernels/gemm.h"
#include "kernels/vector_math.h"

namespace notellm {
namespace {

// A tile of cosines, its rows and its columns stay in a core's L2. Larger ones are 10 % faster on one thread, but leave
// nothing for a second one at a few hundred notes.
constexpr int64_t tile_rows = 128;
constexpr int64_t tile_cols = 256;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
// Stands for a masked cosine where 0·cosine must be 0: e^tau times it is still below any exponent that counts.
constexpr float masked_cosine = std::numeric_limits<float>::lowest();

int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
int64_t tile_size(int64_t rows, int64_t cols) { return std::min(rows, tile_rows) * std::min(cols, tile_cols); }
// Workspace: a double for each tile of rows, then the threads' tiles.
int64_t floats_of_sums(int64_t rows) { return 2 * tiles_of(rows, tile_rows); }

// What both directions read.
struct Problem {
  Tensor z_rows, z_all;
  int64_t rows, cols, d, first_row;
  float factor;        // e^tau
  const float* log_q;  // or null
  const int32_t* mask_begin;
  const int32_t* mask_columns;
  int threads;   // as many as the workspace has tiles for
  double* sums;  // one for each tile of rows
  float* tiles;

  int64_t positive(int64_t row) const { return (first_row + row) ^ 1; }
  Tensor tile_memory(int64_t row_count, int64_t col_count) const {
    return Tensor::of(tiles + omp_get_thread_num() * tile_size(rows, cols), {row_count, col_count});
  }
};

// Columns [first, last) of one row of the matrix, in a tile.
struct RowPart {
  float* cosines;
  int64_t row, first, last;
  int64_t size() const { return last - first; }
  bool holds(int64_t column) const { return first <= column && column < last; }
};

template <class F>
void for_masked(const Problem& p, const RowPart& part, F&& f) {
  const int32_t *begin = p.mask_columns + p.mask_begin[part.row], *end = p.mask_columns + p.mask_begin[part.row + 1];
  for (const int32_t* at = std::lower_bound(begin, end, part.first); at < end && *at < part.last; ++at)
    f(part.cosines[*at - part.first]);
}

void check_mask(const Problem& p, const Tensor& mask_columns) {
  const int32_t *begin = p.mask_begin, *columns = p.mask_columns;
  NOTELLM_CHECK(begin[0] == 0 && std::is_sorted(begin, begin + p.rows + 1), "mask_begin does not ascend from 0");
  expect("mask_columns", mask_columns, DType::i32, begin[p.rows]);
  for (int64_t i = 0; i < p.rows; ++i) {
    bool itself = false;
    int64_t before = -1;
    for (int32_t k = begin[i]; k < begin[i + 1]; ++k) {
      NOTELLM_CHECK(before < columns[k] && columns[k] < p.cols && columns[k] != p.positive(i),
                    "row {} masks column {} after {} of {}: not ascending, outside, or its positive", i, columns[k],
                    before, p.cols);
      before = columns[k];
      itself |= before == p.first_row + i;
    }
    NOTELLM_CHECK(itself, "row {} does not mask itself, column {}", i, p.first_row + i);
  }
}

// All but the mask's contents, which on CUDA the host cannot see.
void check(const Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, Tensor log_q, Tensor mask_begin,
           Tensor mask_columns, Tensor row_lse, Tensor workspace) {
  const int64_t rows = z_rows.rows(), cols = z_all.rows(), d = z_all.cols();
  expect("z_rows", z_rows, DType::f32, rows, d);
  expect("z_all", z_all, DType::f32, cols, d);
  if (!log_q.empty()) expect("log_q", log_q, DType::f32, cols);
  expect("row_lse", row_lse, DType::f64, rows);
  NOTELLM_CHECK(d > 0, "vectors of no coordinates");
  NOTELLM_CHECK(cols % 2 == 0, "{} columns, but they come in pairs", cols);
  NOTELLM_CHECK(0 <= first_row && first_row + rows <= cols, "rows {}..{} of {} columns", first_row, first_row + rows,
                cols);
  const int64_t needed =
      stream.on_gpu() ? infonce_workspace(Device::cuda, rows, cols, d) : floats_of_sums(rows) + tile_size(rows, cols);
  NOTELLM_CHECK(workspace.dtype == DType::f32 && workspace.size() >= needed,
                "workspace is {}, but needs at least {} elements of f32", describe(workspace), needed);
  NOTELLM_CHECK(reinterpret_cast<uintptr_t>(workspace.data) % alignof(double) == 0, "workspace is not 8-byte aligned");
  expect("mask_begin", mask_begin, DType::i32, rows + 1);
  NOTELLM_CHECK(mask_columns.dtype == DType::i32, "mask_columns is {}, but i32 is needed", describe(mask_columns));
}

Problem problem(Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
                Tensor mask_columns, Tensor workspace) {
  const int64_t rows = z_rows.rows(), cols = z_all.rows(), sums = floats_of_sums(rows), tile = tile_size(rows, cols);
  const int64_t room = tile == 0 ? 1 : (workspace.size() - sums) / tile;
  Problem p{z_rows,
            z_all,
            rows,
            cols,
            z_all.cols(),
            first_row,
            std::exp(tau),
            log_q.empty() ? nullptr : log_q.as<float>(),
            mask_begin.as<int32_t>(),
            mask_columns.as<int32_t>(),
            static_cast<int>(std::min<int64_t>(omp_get_max_threads(), room)),
            static_cast<double*>(workspace.data),
            workspace.as<float>() + sums};
  check_mask(p, mask_columns);
  return p;
}

// tile[i, j] = z_i·z_j
Tensor cosines(Stream& stream, const Problem& p, int64_t row, int64_t column) {
  const int64_t row_end = std::min(p.rows, row + tile_rows), column_end = std::min(p.cols, column + tile_cols);
  const Tensor tile = p.tile_memory(row_end - row, column_end - column);
  gemm(stream, p.z_rows.slice(row, row_end), Transpose::no, p.z_all.slice(column, column_end), Transpose::yes, tile);
  return tile;
}

float sum_of(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

float logit(float cosine, float factor, float log_q) { return cosine * factor - log_q; }

// S from the cosines, in place.
void to_logits(const Problem& p, const RowPart& part) {
  float* x = part.cosines;
  const int64_t n = part.size();
  if (p.log_q) {
    const float* log_q = p.log_q + part.first;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) x[j] = logit(x[j], p.factor, log_q[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) x[j] = logit(x[j], p.factor, 0.0f);
  }
}

// What a row's forward pass carries from tile to tile. The positive stays out of the sum: where it dominates, the loss
// is the negatives' share alone, which a sum with the positive in it would have rounded away.
struct RowState {
  float best = minus_infinity;  // maximum of the negatives' S so far
  double sum = 0;               // Σ exp(S − best) of the negatives
  double cosines = 0;           // Σ of the negatives' cosines
  float positive = 0;           // S of the positive

  void add(const Problem& p, const RowPart& part) {
    const int64_t positive_column = p.positive(part.row);
    float* own = part.holds(positive_column) ? part.cosines + (positive_column - part.first) : nullptr;
    cosines += sum_of(part.cosines, part.size());
    for_masked(p, part, [&](float& cosine) { cosines -= cosine; });
    if (own) cosines -= *own;
    to_logits(p, part);
    for_masked(p, part, [](float& logit) { logit = minus_infinity; });
    if (own) positive = std::exchange(*own, minus_infinity);
    const float top = std::max(best, max_of(part.cosines, part.size()));
    if (top == minus_infinity) {  // no negatives so far: adds 0, or NaN, which max_of passes over
      sum += sum_of_exp(part.cosines, 0.0f, part.size());
      return;
    }
    sum = sum * std::exp(static_cast<double>(best) - top) + sum_of_exp(part.cosines, top, part.size());
    best = top;
  }

  double lse() const {
    const double negatives = best + std::log(sum), own = positive;
    return own > negatives ? own + std::log1p(std::exp(negatives - own))
                           : negatives + std::log1p(std::exp(own - negatives));
  }
};

// scale·e^tau·P from the cosines, in place. Returns Σ_j P·cosine.
float to_probabilities(const Problem& p, const RowPart& part, double lse, float weight) {
  // lse in two parts, so that S − lse keeps the digits that lse has beyond f32.
  const float high = static_cast<float>(lse), low = static_cast<float>(lse - high);
  const int64_t n = part.size();
  float *x = part.cosines, sum = 0;
  auto probability = [&](float& cosine, float log_q) {
    const float value = exp_or_zero(logit(cosine, p.factor, log_q) - high - low), product = value * cosine;
    cosine = value * weight;
    return product;
  };
  if (p.log_q) {
    const float* log_q = p.log_q + part.first;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += probability(x[j], log_q[j]);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += probability(x[j], 0.0f);
  }
  return sum;
}

// scale·e^tau·(P − Y) from the cosines, in place. Returns its sum times the cosines.
double to_gradient(const Problem& p, const RowPart& part, double lse, float scale) {
  const float weight = scale * p.factor;
  for_masked(p, part, [](float& cosine) { cosine = masked_cosine; });
  const int64_t positive_column = p.positive(part.row);
  if (!part.holds(positive_column)) return static_cast<double>(to_probabilities(p, part, lse, weight)) * weight;
  // P − 1 = exp(−loss) − 1 of the positive: near 0 for a good row, where the subtraction would leave nothing of it.
  float& positive = part.cosines[positive_column - part.first];
  const double cosine = positive;
  const double missing = std::expm1(logit(positive, p.factor, p.log_q ? p.log_q[positive_column] : 0.0f) - lse);
  positive = masked_cosine;
  const double sum = to_probabilities(p, part, lse, weight);
  positive = static_cast<float>(missing * weight);
  return (sum + missing * cosine) * weight;
}

void forward_rows(Stream& stream, const Problem& p, int64_t first, double* lse, float* positive, float* similarity) {
  RowState states[tile_rows];
  for (int64_t column = 0; column < p.cols; column += tile_cols) {
    const Tensor tile = cosines(stream, p, first, column);
    for (int64_t i = 0; i < tile.rows(); ++i)
      states[i].add(p, {tile.as<float>() + i * tile.cols(), first + i, column, column + tile.cols()});
  }
  for (int64_t i = first; i < std::min(p.rows, first + tile_rows); ++i) {
    const RowState& state = states[i - first];
    lse[i] = state.lse();
    positive[i] = state.positive;
    const int64_t negatives = p.cols - 1 - (p.mask_begin[i + 1] - p.mask_begin[i]);
    similarity[i] = negatives > 0 ? static_cast<float>(state.cosines / static_cast<double>(negatives)) : 0.0f;
  }
}

}  // namespace

int64_t infonce_workspace(Device device, int64_t rows, int64_t cols, int64_t d) {
  if constexpr (cuda_built)
    if (device == Device::cuda) return gpu::infonce_workspace(rows, cols, d);
  return floats_of_sums(rows) + omp_get_max_threads() * tile_size(rows, cols);
}

void infonce(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
             Tensor mask_columns, Tensor row_lse, Tensor row_positive, Tensor row_similarity, Tensor workspace) {
  check(stream, z_rows, first_row, z_all, log_q, mask_begin, mask_columns, row_lse, workspace);
  expect("row_positive", row_positive, DType::f32, z_rows.rows());
  expect("row_similarity", row_similarity, DType::f32, z_rows.rows());
  if constexpr (cuda_built)
    if (stream.on_gpu())
      return gpu::infonce(stream, z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns, row_lse, row_positive,
                          row_similarity, workspace);
  const Problem p = problem(z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns, workspace);
  double* lse = row_lse.as<double>();
  float *positive = row_positive.as<float>(), *similarity = row_similarity.as<float>();
  // Whole tiles go to threads, each with gemm() on itself alone: its result then cannot depend on the number of
  // threads.
#pragma omp parallel for schedule(dynamic) num_threads(p.threads)
  for (int64_t first = 0; first < p.rows; first += tile_rows) forward_rows(stream, p, first, lse, positive, similarity);
}

void infonce_backward(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q,
                      Tensor mask_begin, Tensor mask_columns, Tensor row_lse, float scale, Tensor dz_rows,
                      Tensor dz_all, Tensor dtau, Tensor workspace) {
  check(stream, z_rows, first_row, z_all, log_q, mask_begin, mask_columns, row_lse, workspace);
  expect("dz_rows", dz_rows, DType::f32, z_rows.rows(), z_rows.cols());
  expect("dz_all", dz_all, DType::f32, z_all.rows(), z_all.cols());
  expect("dtau", dtau, DType::f64, 1);
  if constexpr (cuda_built)
    if (stream.on_gpu())
      return gpu::infonce_backward(stream, z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns, row_lse,
                                   scale, dz_rows, dz_all, dtau, workspace);
  const Problem p = problem(z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns, workspace);
  const double* lse = row_lse.as<double>();
  const int64_t down = tiles_of(p.rows, tile_rows), across = tiles_of(p.cols, tile_cols);
  const int64_t many = std::max(down, across), few = std::min(down, across);
  std::fill_n(p.sums, down, 0.0);
  // A tile adds to its rows' gradient and to its columns'. The tiles of one diagonal share neither, so that threads
  // take them side by side; diagonal after diagonal gives every sum one order.
#pragma omp parallel num_threads(p.threads)
  for (int64_t diagonal = 0; diagonal < many; ++diagonal) {
#pragma omp for schedule(dynamic)
    for (int64_t k = 0; k < few; ++k) {
      const int64_t row_tile = down <= across ? k : (k + diagonal) % many;
      const int64_t first = row_tile * tile_rows, column = (down <= across ? (k + diagonal) % many : k) * tile_cols;
      const Tensor tile = cosines(stream, p, first, column);
      double sum = 0;
      for (int64_t i = 0; i < tile.rows(); ++i)
        sum += to_gradient(p, {tile.as<float>() + i * tile.cols(), first + i, column, column + tile.cols()},
                           lse[first + i], scale);
      p.sums[row_tile] += sum;
      const int64_t row_end = first + tile.rows(), column_end = column + tile.cols();
      gemm(stream, tile, Transpose::no, z_all.slice(column, column_end), Transpose::no, dz_rows.slice(first, row_end),
           true);
      gemm(stream, tile, Transpose::yes, z_rows.slice(first, row_end), Transpose::no, dz_all.slice(column, column_end),
           true);
    }
  }
  for (int64_t i = 0; i < down; ++i) *dtau.as<double>() += p.sums[i];
}

}  // namespace notellm

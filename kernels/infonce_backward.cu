// The backward pass. One kernel, run twice: for the gradient of the rows each block has 128 rows and goes over columns,
// for that of the columns it has 128 columns and goes over rows. It makes the tile of cosines again, turns it into
// G = scale·e^tau·P, and adds G times the inner vectors to its own outer vectors' gradient. So every sum has one owner
// and one order. The positives' share is a kernel of its own: P − 1 needs other arithmetic, and there are few.
#include <algorithm>

#include "kernels/infonce_tile.cuh"

namespace notellm::gpu {
namespace infonce_detail {

namespace {

using Tile = float[outer_per_thread][inner_per_thread];

// What P of a row's S takes: lse in two parts, so that S − lse keeps the digits that lse has beyond f32.
struct RowScale {
  float high = 0.0f, low = 0.0f;
  __device__ RowScale(const Problem& p, const double* lse, int row) {
    if (row >= p.rows) return;
    high = static_cast<float>(lse[row]);
    low = static_cast<float>(lse[row] - high);
  }
};

// G from a cosine, in place; 0 where left out. Returns G·cosine.
__device__ float scaled(const Problem& p, float& cosine, const RowScale& row, float log_q, bool left_out,
                        float weight) {
  const float g = left_out ? 0.0f : weight * expf(p.logit(cosine, log_q) - row.high - row.low);
  const float product = left_out ? 0.0f : g * cosine;
  cosine = g;
  return product;
}

__device__ float rows_outer_gradient(const Problem& p, const double* lse, float weight, int first, int column,
                                     const uint32_t* left_out, Tile& tile) {
  float log_q[inner_per_thread], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < inner_per_thread; ++i) log_q[i] = p.log_q_of(column + inner_of(i));
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o) {
    const RowScale row(p, lse, first + outer_of(o));
    const uint32_t bits = four_bits<inner_rows / 32>(left_out, outer_of(o), thread_x());
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) sum += scaled(p, tile[o][i], row, log_q[i], bits >> i & 1, weight);
  }
  return sum;
}

__device__ void columns_outer_gradient(const Problem& p, const double* lse, float weight, int first, int row,
                                       const uint32_t* left_out, Tile& tile) {
  float log_q[outer_per_thread];
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o) log_q[o] = p.log_q_of(first + outer_of(o));
#pragma unroll
  for (int i = 0; i < inner_per_thread; ++i) {
    const RowScale scale(p, lse, row + inner_of(i));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t bits = four_bits<outer_rows / 32>(left_out, inner_of(i), half * 16 + thread_y());
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int o = half * 4 + k;
        scaled(p, tile[o][i], scale, log_q[o], bits >> k & 1, weight);
      }
    }
  }
}

// result[o][i] = Σ over the tile's inner rows of g[inner][o] · z[inner, column + i]; g is the block's, k-major.
template <bool packs>
__device__ void multiply_gradient(const float* g, const float* z, int rows, int d, int first, int column, Stage& stage,
                                  Tile& result) {
  const int row = threadIdx.x / 16, at = thread_x() * 4;
  Pack<float> next;
  auto load = [&](int k) {
    if (row < depth) next = load4<packs>(z, rows, d, first + k + row, column + at);
  };
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o)
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) result[o][i] = 0.0f;
  load(0);
  for (int k = 0, buffer = 0; k < inner_rows; k += depth, buffer ^= 1) {
    if (row < depth) store_pack(stage.inner[buffer] + row * inner_stride + at, next);
    __syncthreads();
    if (k + depth < inner_rows) load(k + depth);
    multiply(g + k * outer_stride, stage.inner[buffer], result);
  }
}

// dz[first + o, column + i] += or = sums
template <bool packs>
__device__ void add_to(float* dz, int rows, int d, int first, int column, bool overwrite, const Tile& sums) {
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o) {
    const int row = first + outer_of(o), c = column + inner_of(0);
    if (row >= rows || c >= d) continue;
    Pack<float> result = {};
    if (!overwrite) result = load4<packs>(dz, rows, d, row, c);
    float* to = dz + static_cast<int64_t>(row) * d + c;
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) result.x[i] += sums[o][i];
    if constexpr (packs) {
      store_pack(to, result);
    } else {
#pragma unroll
      for (int i = 0; i < inner_per_thread; ++i)
        if (c + i < d) to[i] = result.x[i];
    }
  }
}

// The sum over the block in thread 0; scratch has a place for each warp.
__device__ double block_sum(double x, double* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < warps; ++w) sum += scratch[w];
  return sum;
}

// Part y of the inner tiles: part 0 is added to dz [outer, d], part y is stored in partials [parts − 1, outer, d].
template <bool packs, bool rows_outer>
__global__ void __launch_bounds__(threads, 2)
    infonce_gradient_kernel(Problem p, const double* lse, float weight, int tiles_per_split, float* dz, float* partials,
                            double* dtau) {
  constexpr int words = (rows_outer ? inner_rows : outer_rows) / 32;  // of the columns in a tile
  constexpr int mask_rows = rows_outer ? outer_rows : inner_rows;
  __shared__ Stage stage;
  __shared__ alignas(16) float g[inner_rows * outer_stride];
  __shared__ uint32_t left_out[mask_rows * words];
  const float *outer_z = rows_outer ? p.z_rows : p.z_all, *inner_z = rows_outer ? p.z_all : p.z_rows;
  const int outer = rows_outer ? p.rows : p.cols, inner = rows_outer ? p.cols : p.rows;
  const int first = blockIdx.x * outer_rows, begin = blockIdx.y * tiles_per_split * inner_rows;
  const bool partial = blockIdx.y > 0;
  if (partial) dz = partials + static_cast<int64_t>(blockIdx.y - 1) * outer * p.d;
  const bool has_row = threadIdx.x < mask_rows;
  int next = rows_outer && has_row ? first_masked(p, first + threadIdx.x, begin) : 0;
  double sum = 0;
  for (int t = 0, at = begin; t < tiles_per_split && at < inner; ++t, at += inner_rows) {
    __syncthreads();  // the tile before is done with shared memory
    if (has_row) {
      const int row = (rows_outer ? first : at) + threadIdx.x, column = rows_outer ? at : first;
      if (!rows_outer) next = first_masked(p, row, column);
      next = set_left_out<words>(p, row, column, next, left_out + threadIdx.x * words);
    }
    Tile tile;
    multiply_vectors<packs>(outer_z, outer, first, inner_z, inner, at, p.d, stage, tile);
    if constexpr (rows_outer)
      sum += rows_outer_gradient(p, lse, weight, first, at, left_out, tile);
    else
      columns_outer_gradient(p, lse, weight, first, at, left_out, tile);
#pragma unroll
    for (int o = 0; o < outer_per_thread; o += 4)
#pragma unroll
      for (int i = 0; i < inner_per_thread; ++i)
        store_pack(g + inner_of(i) * outer_stride + outer_of(o),
                   Pack<float>{tile[o][i], tile[o + 1][i], tile[o + 2][i], tile[o + 3][i]});
    __syncthreads();  // g is whole, and the stage free
    for (int column = 0; column < p.d; column += inner_rows) {
      multiply_gradient<packs>(g, inner_z, inner, p.d, at, column, stage, tile);
      add_to<packs>(dz, outer, p.d, first, column, partial && t == 0, tile);
    }
  }
  if constexpr (rows_outer) {
    __shared__ double scratch[warps];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) dtau[blockIdx.y * gridDim.x + blockIdx.x] = sum;
  }
}

// dz[i] += partials[0, i] + partials[1, i] …, one after the other.
__global__ void __launch_bounds__(threads)
    infonce_add_partials_kernel(const float* partials, int count, int64_t size, float* dz) {
  const int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= size) return;
  float sum = dz[i];
  for (int s = 0; s < count; ++s) sum += partials[s * size + i];
  dz[i] = sum;
}

// The terms of the positives: a warp a row. Each row has its own positive, so that no two write to the same place.
__global__ void __launch_bounds__(threads)
    infonce_positives_kernel(Problem p, const double* lse, float weight, float* dz_rows, float* dz_all, double* dtau) {
  __shared__ double terms[warps];
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size, row = blockIdx.x * warps + warp;
  double term = 0;
  if (row < p.rows) {
    const int64_t positive = p.positive(row);
    const float cosine = positive_cosine(p, row);
    const double s = p.logit(cosine, p.log_q_of(p.positive(row)));
    // P − 1 = exp(−loss) − 1: near 0 for a good row, where the subtraction would leave nothing of it.
    const float g = weight * expm1f(static_cast<float>(s - lse[row]));
    term = static_cast<double>(g) * cosine;
    const int64_t own = row * int64_t{p.d}, other = positive * p.d;
    for (int c = lane; c < p.d; c += warp_size) {
      dz_rows[own + c] = fmaf(g, p.z_all[other + c], dz_rows[own + c]);
      dz_all[other + c] = fmaf(g, p.z_rows[own + c], dz_all[other + c]);
    }
  }
  if (lane == 0) terms[warp] = term;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int w = 0; w < warps; ++w) sum += terms[w];
  dtau[blockIdx.x] = sum;
}

// One block.
__global__ void __launch_bounds__(threads) infonce_dtau_kernel(const double* terms, int64_t count, double* dtau) {
  __shared__ double scratch[warps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += threads) sum += terms[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *dtau += sum;
}

// Terms of dtau, a double each: of the tiles' blocks, then of the positives'. Room for an even number, so that what
// follows is aligned for packs.
int64_t dtau_terms(int64_t rows, const Split& parts) { return parts.outer_tiles * parts.splits + finish_blocks(rows); }
int64_t even(int64_t n) { return n + n % 2; }

template <bool rows_outer>
void add_gradient(Stream& stream, const Problem& p, const double* lse, float weight, float* dz, float* partials,
                  double* dtau) {
  const int64_t outer = rows_outer ? p.rows : p.cols, inner = rows_outer ? p.cols : p.rows;
  const Split parts = split(outer, inner);
  const auto kernel = whole_packs<float>(p.d, p.z_rows, p.z_all, dz, partials)
                          ? infonce_gradient_kernel<true, rows_outer>
                          : infonce_gradient_kernel<false, rows_outer>;
  kernel<<<parts.grid(), threads, 0, native(stream)>>>(p, lse, weight, static_cast<int>(parts.per_split), dz, partials,
                                                       dtau);
  check_launch("infonce_gradient_kernel");
  if (parts.splits == 1) return;
  const int64_t size = outer * p.d;
  infonce_add_partials_kernel<<<static_cast<unsigned>(ceil_div(size, threads)), threads, 0, native(stream)>>>(
      partials, static_cast<int>(parts.splits - 1), size, dz);
  check_launch("infonce_add_partials_kernel");
}

}  // namespace
}  // namespace infonce_detail

using namespace infonce_detail;

void infonce_backward(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q,
                      Tensor mask_begin, Tensor mask_columns, Tensor row_lse, float scale, Tensor dz_rows,
                      Tensor dz_all, Tensor dtau, Tensor workspace) {
  const Problem p = problem(z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns);
  if (p.rows == 0) return;
  const Split parts = split(p.rows, p.cols);
  const int64_t count = dtau_terms(p.rows, parts);
  const double* lse = row_lse.as<double>();
  const float weight = scale * p.factor;
  double *terms = static_cast<double*>(workspace.data), *of_positives = terms + parts.outer_tiles * parts.splits;
  float* partials = reinterpret_cast<float*>(terms + even(count));
  add_gradient<true>(stream, p, lse, weight, dz_rows.as<float>(), partials, terms);
  add_gradient<false>(stream, p, lse, weight, dz_all.as<float>(), partials, nullptr);
  infonce_positives_kernel<<<static_cast<unsigned>(finish_blocks(p.rows)), threads, 0, native(stream)>>>(
      p, lse, weight, dz_rows.as<float>(), dz_all.as<float>(), of_positives);
  check_launch("infonce_positives_kernel");
  infonce_dtau_kernel<<<1, threads, 0, native(stream)>>>(terms, count, dtau.as<double>());
  check_launch("infonce_dtau_kernel");
}

int64_t infonce_workspace(int64_t rows, int64_t cols, int64_t d) {
  const Split by_rows = split(rows, cols), by_columns = split(cols, rows);
  const int64_t of_rows = (by_rows.splits - 1) * rows * d, of_columns = (by_columns.splits - 1) * cols * d;
  const int64_t terms = even(dtau_terms(rows, by_rows));
  const int64_t backward = rows == 0 ? 0 : 2 * terms + std::max(of_rows, of_columns);
  return std::max(forward_workspace(rows, cols), backward);
}

}  // namespace notellm::gpu

// The forward pass: each block makes the running sums of 128 rows over its part of the columns; a second kernel merges
// the parts in their order.
#include "kernels/infonce_tile.cuh"

namespace notellm::gpu {
namespace infonce_detail {
namespace {

// Of a row's negatives so far. The sum over four columns is f32, everything beyond is f64: the error of `sum` is that
// of its terms, a few roundings of f32 each.
struct RowState {
  float best = minus_infinity;  // the largest S
  double sum = 0;               // Σ exp(S − best)
  double cosines = 0;

  __device__ void raise(float top) {
    if (!(top > best)) return;
    sum *= expf(best - top);  // best = −∞: the sum is 0, or NaN and stays it
    best = top;
  }
  // What exponents are relative to.
  __device__ float base() const { return best == minus_infinity ? 0.0f : best; }

  __device__ void add(const Problem& p, const float (&cosine)[inner_per_thread], const float (&log_q)[inner_per_thread],
                      uint32_t left_out) {
    float s[inner_per_thread], top = minus_infinity, of_cosines = 0.0f;
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) {
      const bool out = left_out >> i & 1;
      s[i] = out ? minus_infinity : p.logit(cosine[i], log_q[i]);
      of_cosines += out ? 0.0f : cosine[i];
      top = fmaxf(top, s[i]);
    }
    raise(top);
    float of_exp = 0.0f;
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) of_exp += expf(s[i] - base());
    sum += of_exp;
    cosines += of_cosines;
  }

  __device__ void merge(RowState other) {
    const float top = fmaxf(best, other.best);
    raise(top);
    other.raise(top);
    sum += other.sum;
    cosines += other.cosines;
  }
  // Over `lanes` neighbouring lanes, a power of two; the same bits in each of them.
  __device__ void merge_lanes(int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
      merge({__shfl_xor_sync(all_lanes, best, distance), __shfl_xor_sync(all_lanes, sum, distance),
             __shfl_xor_sync(all_lanes, cosines, distance)});
  }
};

// [splits, rows] each.
struct Partials {
  double *sum, *cosines;
  float* best;
};

template <bool packs>
__global__ void __launch_bounds__(threads, 2) infonce_kernel(Problem p, int tiles_per_split, Partials partials) {
  constexpr int words = inner_rows / 32;
  __shared__ Stage stage;
  __shared__ uint32_t left_out[outer_rows * words];
  const int first = blockIdx.x * outer_rows, own = first + threadIdx.x;
  const int begin = blockIdx.y * tiles_per_split * inner_rows;
  const bool has_row = threadIdx.x < outer_rows;
  int next = has_row ? first_masked(p, own, begin) : 0;
  RowState states[outer_per_thread];
  for (int tile = 0, column = begin; tile < tiles_per_split && column < p.cols; ++tile, column += inner_rows) {
    __syncthreads();  // the tile before is done with shared memory
    if (has_row) next = set_left_out<words>(p, own, column, next, left_out + threadIdx.x * words);
    float cosines[outer_per_thread][inner_per_thread], log_q[inner_per_thread];
    multiply_vectors<packs>(p.z_rows, p.rows, first, p.z_all, p.cols, column, p.d, stage, cosines);
#pragma unroll
    for (int i = 0; i < inner_per_thread; ++i) log_q[i] = p.log_q_of(column + inner_of(i));
#pragma unroll
    for (int o = 0; o < outer_per_thread; ++o)
      states[o].add(p, cosines[o], log_q, four_bits<words>(left_out, outer_of(o), thread_x()));
  }
#pragma unroll
  for (int o = 0; o < outer_per_thread; ++o) {
    states[o].merge_lanes(16);
    const int row = first + outer_of(o);
    if (thread_x() != 0 || row >= p.rows) continue;
    const int64_t to = static_cast<int64_t>(blockIdx.y) * p.rows + row;
    partials.best[to] = states[o].best;
    partials.sum[to] = states[o].sum;
    partials.cosines[to] = states[o].cosines;
  }
}

// A warp a row.
__global__ void __launch_bounds__(threads)
    infonce_finish_kernel(Problem p, int splits, Partials partials, double* lse, float* positive, float* similarity) {
  const int row = blockIdx.x * warps + threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  if (row >= p.rows) return;
  RowState state;
  for (int s = lane; s < splits; s += warp_size) {
    const int64_t from = static_cast<int64_t>(s) * p.rows + row;
    state.merge({partials.best[from], partials.sum[from], partials.cosines[from]});
  }
  state.merge_lanes(warp_size);
  const float own = p.logit(positive_cosine(p, row), p.log_q_of(p.positive(row)));
  if (lane != 0) return;
  // The positive comes last: where it dominates, the loss is the negatives' share alone.
  const double negatives = state.best + log(state.sum), s = own;
  lse[row] = s > negatives ? s + log1p(exp(negatives - s)) : negatives + log1p(exp(s - negatives));
  positive[row] = own;
  const int count = p.cols - 1 - (p.mask_begin[row + 1] - p.mask_begin[row]);
  similarity[row] = count > 0 ? static_cast<float>(state.cosines / count) : 0.0f;
}

}  // namespace

int64_t forward_workspace(int64_t rows, int64_t cols) { return 5 * split(rows, cols).splits * rows; }

}  // namespace infonce_detail

using namespace infonce_detail;

void infonce(Stream& stream, Tensor z_rows, int64_t first_row, Tensor z_all, float tau, Tensor log_q, Tensor mask_begin,
             Tensor mask_columns, Tensor row_lse, Tensor row_positive, Tensor row_similarity, Tensor workspace) {
  const Problem p = problem(z_rows, first_row, z_all, tau, log_q, mask_begin, mask_columns);
  if (p.rows == 0) return;
  const Split parts = split(p.rows, p.cols);
  const int64_t size = parts.splits * p.rows;
  double* sums = static_cast<double*>(workspace.data);
  const Partials partials{sums, sums + size, reinterpret_cast<float*>(sums + 2 * size)};
  const auto kernel = whole_packs<float>(p.d, p.z_rows, p.z_all) ? infonce_kernel<true> : infonce_kernel<false>;
  kernel<<<parts.grid(), threads, 0, native(stream)>>>(p, static_cast<int>(parts.per_split), partials);
  check_launch("infonce_kernel");
  infonce_finish_kernel<<<static_cast<unsigned>(finish_blocks(p.rows)), threads, 0, native(stream)>>>(
      p, static_cast<int>(parts.splits), partials, row_lse.as<double>(), row_positive.as<float>(),
      row_similarity.as<float>());
  check_launch("infonce_finish_kernel");
}

}  // namespace notellm::gpu

#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/rms_norm.h"

namespace notellm::gpu {
namespace {

// A thread holds one pack of a row in registers: 8,192 columns of bf16 or 4,096 of f32 in all; what longer rows have
// beyond them is read again.
constexpr int most_threads = 1024;
constexpr int slot_threads = 256;  // at most, of a block with several slots

// Blocks of `slots` rows at a time, whole warps a row; each slot goes over several rows, so that gamma, which stays in
// registers, is read for several rows at once.
struct Shape {
  dim3 grid, block;

  template <int n>
  static Shape of(int64_t rows, int64_t cols, int64_t blocks) {
    const int64_t warps = std::min<int64_t>(ceil_div(cols, n * warp_size), most_threads / warp_size);
    const int64_t slots = std::max<int64_t>(1, slot_threads / warp_size / warps);
    Shape shape;
    shape.block = dim3(static_cast<unsigned>(warps * warp_size), static_cast<unsigned>(slots));
    shape.grid = dim3(static_cast<unsigned>(std::min(blocks, ceil_div(rows, slots))));
    return shape;
  }
};

// The sum over a row's threads, in each of them. `of_warp`: shared, one number a warp of the block, this call's alone.
__device__ float row_sum(float x, float* of_warp) {
  x = warp_sum(x);
  const int warps = blockDim.x / warp_size, first = threadIdx.y * warps, lane = threadIdx.x % warp_size;
  if (warps == 1) return x;
  if (lane == 0) of_warp[first + threadIdx.x / warp_size] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[first + lane] : 0.0f);
}

// x + delta, rounded.
template <class T, int n>
__device__ Pack<T, n> sum_of(Pack<T, n> x, const Pack<T, n>& delta) {
#pragma unroll
  for (int k = 0; k < n; ++k) x.x[k] = from_float<T>(to_float(x.x[k]) + to_float(delta.x[k]));
  return x;
}

template <class T, int n>
__device__ Pack<T, n> scaled(Pack<T, n> x, float inv_rms, const Pack<T, n>& gamma) {
#pragma unroll
  for (int k = 0; k < n; ++k) x.x[k] = from_float<T>(to_float(x.x[k]) * inv_rms * to_float(gamma.x[k]));
  return x;
}

// delta and x_out null: no addition. A thread's columns are its own, so that x_out may be x, and y delta.
template <class T, int n>
__global__ void __launch_bounds__(most_threads)
    rms_norm_kernel(const T* x, const T* delta, const T* gamma, float eps, T* x_out, T* y, float* inv_rms, int64_t rows,
                    int cols, float inverse_cols) {
  __shared__ float of_warp[2][warp_size];
  const int own = threadIdx.x * n, stride = blockDim.x * n;
  Pack<T, n> scale = {};
  if (own < cols) scale = load<n>(gamma + own);
  int turn = 0;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows; first += gridDim.x * blockDim.y, turn ^= 1) {
    const int64_t row = first + threadIdx.y, at = row * cols;
    const bool mine = row < rows;
    float squares = 0;
    const auto take = [&](int c) {
      Pack<T, n> p = load<n>(x + at + c);
      if (delta) {
        p = sum_of(p, load<n>(delta + at + c));
        store(x_out + at + c, p);
      }
#pragma unroll
      for (int k = 0; k < n; ++k) squares += to_float(p.x[k]) * to_float(p.x[k]);
      return p;
    };
    Pack<T, n> kept = {};
    if (mine) {
      if (own < cols) kept = take(own);
#pragma unroll 1
      for (int c = own + stride; c < cols; c += stride) take(c);
    }
    const float inverse = rsqrtf(row_sum(squares, of_warp[turn]) * inverse_cols + eps);
    if (!mine) continue;
    if (threadIdx.x == 0) inv_rms[row] = inverse;
    if (own < cols) store(y + at + own, scaled(kept, inverse, scale));
    const T* normed = delta ? x_out : x;
#pragma unroll 1
    for (int c = own + stride; c < cols; c += stride)
      store(y + at + c, scaled(load<n>(normed + at + c), inverse, load<n>(gamma + c)));
  }
}

// One thread `n` columns of several rows.
template <class T, int n>
__global__ void __launch_bounds__(RowGrid::threads)
    rms_norm_apply_kernel(const T* x, const T* gamma, const float* inv_rms, T* y, int64_t rows, int cols) {
  const int c = RowGrid::item() * n;
  if (c >= cols) return;
  const Pack<T, n> scale = load<n>(gamma + c);
  for (int64_t row = RowGrid::row(); row < rows; row += gridDim.x * blockDim.y)
    store(y + row * cols + c, scaled(load<n>(x + row * cols + c), inv_rms[row], scale));
}

// `parts` [gridDim.x, cols]: each block's Σ dy·x̂ over its rows.
template <class T, int n>
__global__ void __launch_bounds__(most_threads)
    rms_norm_backward_kernel(const T* dy, const T* x, const T* gamma, const float* inv_rms, T* dx, float* parts,
                             int64_t rows, int cols, float inverse_cols) {
  __shared__ float of_warp[2][warp_size];
  __shared__ float of_slots[n][slot_threads];
  const int own = threadIdx.x * n, stride = blockDim.x * n, rest = own + stride;
  float* part = parts + int64_t{blockIdx.x} * cols;
  Pack<T, n> scale = {};
  if (own < cols) scale = load<n>(gamma + own);
  Pack<float, n> sums = {};
  int turn = 0;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows; first += gridDim.x * blockDim.y, turn ^= 1) {
    const int64_t row = first + threadIdx.y, at = row * cols;
    const bool mine = row < rows;
    float dot = 0;
    const auto add = [&](const Pack<T, n>& d, const Pack<T, n>& p, const Pack<T, n>& g) {
#pragma unroll
      for (int k = 0; k < n; ++k) dot += to_float(g.x[k]) * to_float(d.x[k]) * to_float(p.x[k]);
    };
    Pack<T, n> d = {}, p = {};
    if (mine) {
      if (own < cols) add(d = load<n>(dy + at + own), p = load<n>(x + at + own), scale);
#pragma unroll 1
      for (int c = rest; c < cols; c += stride) add(load<n>(dy + at + c), load<n>(x + at + c), load<n>(gamma + c));
    }
    dot = row_sum(dot, of_warp[turn]);
    if (!mine) continue;
    const float inverse = inv_rms[row], along_x = dot * inverse * inverse * inverse * inverse_cols;
    // dx of a pack; its terms of dgamma go to `sum`.
    const auto write = [&](int c, const Pack<T, n>& d, const Pack<T, n>& p, const Pack<T, n>& g, Pack<float, n>& sum) {
      Pack<T, n> result = load<n>(dx + at + c);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float across = to_float(g.x[k]) * to_float(d.x[k]) * inverse;
        sum.x[k] += to_float(d.x[k]) * (to_float(p.x[k]) * inverse);
        result.x[k] = from_float<T>(to_float(result.x[k]) + across - to_float(p.x[k]) * along_x);
      }
      store(dx + at + c, result);
    };
    if (own < cols) write(own, d, p, scale, sums);
      // Rows this long have a block to themselves: what is beyond the registers is summed in `part`, a thread its own.
#pragma unroll 1
    for (int c = rest; c < cols; c += stride) {
      Pack<float, n> sum = {};
      if (first != blockIdx.x) sum = load<n>(part + c);
      write(c, load<n>(dy + at + c), load<n>(x + at + c), load<n>(gamma + c), sum);
      store(part + c, sum);
    }
  }
  // Several slots a block: the first adds the others' sums in order.
  if (blockDim.y > 1) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int k = 0; k < n; ++k) of_slots[k][thread] = sums.x[k];
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int other = thread + blockDim.x; other < blockDim.x * blockDim.y; other += blockDim.x)
#pragma unroll
      for (int k = 0; k < n; ++k) sums.x[k] += of_slots[k][other];
  }
  if (own < cols) store(part + own, sums);
}

constexpr int add_height = 32;

// dgamma[c] += Σ parts[p, c]: 32 columns a block; its warps take the parts in turn and are then added in order.
__global__ void __launch_bounds__(add_height* warp_size)
    add_parts_kernel(const float* parts, int count, int cols, float* dgamma) {
  __shared__ float sums[add_height][warp_size];
  const int c = blockIdx.x * warp_size + threadIdx.x;
  float sum = 0;
  if (c < cols)
    for (int p = threadIdx.y; p < count; p += add_height) sum += parts[int64_t{p} * cols + c];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= cols) return;
  for (int h = 1; h < add_height; ++h) sum += sums[h][threadIdx.x];
  dgamma[c] += sum;
}

// Rows that one slot, or thread, goes over: as many as leave enough blocks for a large GPU, up to 8.
int64_t rows_each(int64_t rows) { return std::clamp<int64_t>(rows / 1024, 1, 8); }

template <class T, int n>
void forward(Stream& stream, Tensor x, Tensor delta, Tensor gamma, float eps, Tensor x_out, Tensor y, Tensor inv_rms) {
  const int64_t rows = x.rows(), cols = x.cols();
  const bool add = !delta.empty();
  Shape shape = Shape::of<n>(rows, cols, rows);
  shape.grid.x = static_cast<unsigned>(ceil_div(rows, shape.block.y * rows_each(rows)));
  rms_norm_kernel<T, n><<<shape.grid, shape.block, 0, native(stream)>>>(
      x.as<T>(), add ? delta.as<T>() : nullptr, gamma.as<T>(), eps, add ? x_out.as<T>() : nullptr, y.as<T>(),
      inv_rms.as<float>(), rows, static_cast<int>(cols), 1.0f / static_cast<float>(cols));
  check_launch("rms_norm_kernel");
}

template <class T, int n>
void apply(Stream& stream, Tensor x, Tensor gamma, Tensor inv_rms, Tensor y) {
  const int64_t rows = x.rows();
  const RowGrid g(ceil_div(rows, rows_each(rows)), x.cols() / n);
  rms_norm_apply_kernel<T, n><<<g.grid, g.block, 0, native(stream)>>>(x.as<T>(), gamma.as<T>(), inv_rms.as<float>(),
                                                                      y.as<T>(), rows, static_cast<int>(x.cols()));
  check_launch("rms_norm_apply_kernel");
}

template <class T, int n>
void backward(Stream& stream, Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma,
              Tensor workspace) {
  const int64_t rows = x.rows(), cols = x.cols();
  const Shape shape = Shape::of<n>(rows, cols, workspace.rows() / cols);
  rms_norm_backward_kernel<T, n><<<shape.grid, shape.block, 0, native(stream)>>>(
      dy.as<T>(), x.as<T>(), gamma.as<T>(), inv_rms.as<float>(), dx.as<T>(), workspace.as<float>(), rows,
      static_cast<int>(cols), 1.0f / static_cast<float>(cols));
  check_launch("rms_norm_backward_kernel");
  add_parts_kernel<<<static_cast<unsigned>(ceil_div(cols, warp_size)), dim3(warp_size, add_height), 0,
                     native(stream)>>>(workspace.as<float>(), static_cast<int>(shape.grid.x), static_cast<int>(cols),
                                       dgamma.as<float>());
  check_launch("add_parts_kernel");
}

}  // namespace

void rms_norm(Stream& stream, Tensor x, Tensor delta, Tensor gamma, float eps, Tensor x_out, Tensor y, Tensor inv_rms) {
  if (x.size() == 0) return;
  with_float_type("x", x, [&]<class T>(T) {
    whole_packs<T>(x.cols(), x.data, delta.data, gamma.data, x_out.data, y.data)
        ? forward<T, Pack<T>::size>(stream, x, delta, gamma, eps, x_out, y, inv_rms)
        : forward<T, 1>(stream, x, delta, gamma, eps, x_out, y, inv_rms);
  });
}

void rms_norm_apply(Stream& stream, Tensor x, Tensor gamma, Tensor inv_rms, Tensor y) {
  if (x.size() == 0) return;
  with_float_type("x", x, [&]<class T>(T) {
    whole_packs<T>(x.cols(), x.data, gamma.data, y.data) ? apply<T, Pack<T>::size>(stream, x, gamma, inv_rms, y)
                                                         : apply<T, 1>(stream, x, gamma, inv_rms, y);
  });
}

void rms_norm_backward(Stream& stream, Tensor dy, Tensor x, Tensor gamma, Tensor inv_rms, Tensor dx, Tensor dgamma,
                       Tensor workspace) {
  if (x.size() == 0) return;
  with_float_type("x", x, [&]<class T>(T) {
    whole_packs<T>(x.cols(), dy.data, x.data, gamma.data, dx.data, workspace.data)
        ? backward<T, Pack<T>::size>(stream, dy, x, gamma, inv_rms, dx, dgamma, workspace)
        : backward<T, 1>(stream, dy, x, gamma, inv_rms, dx, dgamma, workspace);
  });
}

}  // namespace notellm::gpu

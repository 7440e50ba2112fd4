#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/embedding.h"

namespace notellm::gpu {
namespace {

// One thread `n` columns of a row.
template <class T, int n>
__global__ void __launch_bounds__(RowGrid::threads)
    gather_kernel(const T* x, const int32_t* index, T* y, int64_t rows, int cols) {
  const int64_t row = RowGrid::row();
  const int c = RowGrid::item() * n;
  if (row >= rows || c >= cols) return;
  const int from = index[row];
  store(y + row * cols + c, from < 0 ? Pack<T, n>{} : load<n>(x + from * int64_t{cols} + c));
}

template <class T, int n>
void gather(Stream& stream, Tensor x, Tensor rows, Tensor y) {
  const RowGrid g(y.rows(), y.cols() / n);
  gather_kernel<T, n><<<g.grid, g.block, 0, native(stream)>>>(x.as<T>(), rows.as<int32_t>(), y.as<T>(), y.rows(),
                                                              static_cast<int>(y.cols()));
  check_launch("gather_kernel");
}

constexpr int warps = 8;
constexpr int long_group = 64;  // rows; a longer one is shared by a block's warps

struct Groups {
  const int32_t *target, *begin, *rows;  // begin null: group g is row g
  int count;
};

// sum[k] += Σ of rows `from`, from + step, … of the groups' list, at this thread's columns, if it has any. All lanes of
// the warp come: each reads one of the next 32 places in the list.
template <class T, int n>
__device__ void add_rows(const T* dy, const int32_t* rows, int from, int to, int step, int64_t cols, bool mine,
                         float* sum) {
  for (int base = from; base < to; base += step * warp_size) {
    const int place = base + threadIdx.x % warp_size * step;
    const int listed = place < to ? (rows ? rows[place] : place) : 0;
    const int count = min(warp_size, (to - base + step - 1) / step);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const int64_t row = __shfl_sync(all_lanes, listed, i);
      if (!mine) continue;
      const Pack<T, n> x = load<n>(dy + row * cols);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += to_float(x.x[j]);
    }
  }
}

// dx[k] += sum[k], rounded once.
template <class Sum, int n>
__device__ void add_to(Sum* dx, const float* sum) {
  Pack<Sum, n> x = load<n>(dx);
#pragma unroll
  for (int j = 0; j < n; ++j) x.x[j] = from_float<Sum>(to_float(x.x[j]) + sum[j]);
  store(dx, x);
}

// A block has 8 groups and 32·n columns: each warp sums a group of its own, then all of them each long group, a part of
// its rows each. [EMB] is in every note: without that, one warp would add thousands of rows while all others are done.
template <class T, class Sum, int n>
__global__ void __launch_bounds__(warps* warp_size) scatter_kernel(const T* dy, Groups groups, Sum* dx, int cols) {
  __shared__ float parts[warps][warp_size][n];
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, first = blockIdx.x * warps;
  const int c = (blockIdx.y * warp_size + lane) * n, here = min(warps, groups.count - first);
  const bool mine = c < cols;
  // Lane g has where the block's group g begins and ends, and whose it is.
  int begin = first + lane, end = begin + 1, target = 0;
  if (lane < here) {
    if (groups.begin) begin = groups.begin[first + lane];
    target = groups.target[first + lane];
  }
  if (groups.begin) {
    end = __shfl_down_sync(all_lanes, begin, 1);
    if (lane == here - 1) end = groups.begin[first + here];
  }
  const unsigned long_groups = __ballot_sync(all_lanes, lane < here && end - begin > long_group);
  const auto of = [](int value, int group) { return __shfl_sync(all_lanes, value, group); };

  if (warp < here && !(long_groups >> warp & 1)) {
    float sum[n] = {};
    add_rows<T, n>(dy + c, groups.rows, of(begin, warp), of(end, warp), 1, cols, mine, sum);
    const int64_t to = of(target, warp);
    if (mine) add_to<Sum, n>(dx + to * cols + c, sum);
  }
  for (unsigned rest = long_groups; rest; rest &= rest - 1) {
    const int g = __ffs(rest) - 1;
    const int64_t to = of(target, g);
    float sum[n] = {};
    add_rows<T, n>(dy + c, groups.rows, of(begin, g) + warp, of(end, g), warps, cols, mine, sum);
#pragma unroll
    for (int j = 0; j < n; ++j) parts[warp][lane][j] = sum[j];
    __syncthreads();
    if (warp == 0 && mine) {
      for (int w = 1; w < warps; ++w)
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += parts[w][lane][j];
      add_to<Sum, n>(dx + to * cols + c, sum);
    }
    __syncthreads();
  }
}

template <class T, class Sum, int n>
void scatter(Stream& stream, Tensor dy, const Groups& groups, Tensor dx) {
  const dim3 grid(static_cast<unsigned>(ceil_div(groups.count, warps)),
                  static_cast<unsigned>(ceil_div(dy.cols(), warp_size * n)));
  scatter_kernel<T, Sum, n>
      <<<grid, warps * warp_size, 0, native(stream)>>>(dy.as<T>(), groups, dx.as<Sum>(), static_cast<int>(dy.cols()));
  check_launch("scatter_kernel");
}

}  // namespace

void gather_rows(Stream& stream, Tensor x, Tensor rows, Tensor y) {
  if (y.size() == 0) return;
  with_float_type("y", y, [&]<class T>(T) {
    whole_packs<T>(y.cols(), x.as<T>(), y.as<T>()) ? gather<T, Pack<T>::size>(stream, x, rows, y)
                                                   : gather<T, 1>(stream, x, rows, y);
  });
}

void scatter_add_rows(Stream& stream, Tensor dy, const RowGroups& groups, Tensor dx) {
  if (dy.size() == 0 || groups.target.rows() == 0) return;
  const bool plain = groups.begin.empty();
  const Groups g = {groups.target.as<int32_t>(), plain ? nullptr : groups.begin.as<int32_t>(),
                    plain ? nullptr : groups.rows.as<int32_t>(), static_cast<int>(groups.target.rows())};
  with_float_type("dy", dy, [&]<class T>(T) {
    with_float_type("dx", dx, [&]<class Sum>(Sum) {
      if constexpr (sizeof(Sum) >= sizeof(T)) {  // f32 into bf16 has been refused
        whole_packs<T>(dy.cols(), dy.as<T>(), dx.as<Sum>()) ? scatter<T, Sum, Pack<Sum>::size>(stream, dy, g, dx)
                                                            : scatter<T, Sum, 1>(stream, dy, g, dx);
      }
    });
  });
}

}  // namespace notellm::gpu

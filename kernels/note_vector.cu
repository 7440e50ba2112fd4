#include "kernels/cuda_common.cuh"
#include "kernels/note_vector.h"

namespace notellm::gpu {
namespace {

constexpr int warps = 8;
constexpr int held =
    4;  // packs of a lane that stay in registers: 512 columns in all; of longer rows the rest is read again

// A warp a row: packs lane, lane + 32, … are a lane's own, so that z may be v.
template <int n>
__global__ void __launch_bounds__(warps* warp_size)
    normalize_kernel(const float* v, float* z, float* norm, int64_t rows, int cols) {
  const int lane = threadIdx.x % warp_size;
  const int64_t row = blockIdx.x * int64_t{warps} + threadIdx.x / warp_size;
  if (row >= rows) return;
  const float* from = v + row * cols;
  float* to = z + row * cols;
  double squares = 0;
  const auto add = [&](const Pack<float, n>& x) {
#pragma unroll
    for (int k = 0; k < n; ++k) squares += static_cast<double>(x.x[k]) * static_cast<double>(x.x[k]);
  };
  Pack<float, n> kept[held];
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int c = (j * warp_size + lane) * n;
    if (c < cols) add(kept[j] = load<n>(from + c));
  }
#pragma unroll 1
  for (int c = (held * warp_size + lane) * n; c < cols; c += warp_size * n) add(load<n>(from + c));

  const auto length = static_cast<float>(sqrt(warp_sum(squares)));
  const float divisor = length == 0 ? 1.0f : length;
  if (lane == 0) norm[row] = length;
  const auto write = [&](int c, Pack<float, n> x) {
#pragma unroll
    for (int k = 0; k < n; ++k) x.x[k] /= divisor;
    store(to + c, x);
  };
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int c = (j * warp_size + lane) * n;
    if (c < cols) write(c, kept[j]);
  }
#pragma unroll 1
  for (int c = (held * warp_size + lane) * n; c < cols; c += warp_size * n) write(c, load<n>(from + c));
}

template <int n>
__global__ void __launch_bounds__(warps* warp_size)
    normalize_backward_kernel(const float* dz, const float* z, const float* norm, float* dv, int64_t rows, int cols) {
  const int lane = threadIdx.x % warp_size;
  const int64_t row = blockIdx.x * int64_t{warps} + threadIdx.x / warp_size;
  if (row >= rows) return;
  const float *gradient = dz + row * cols, *unit = z + row * cols;
  float* to = dv + row * cols;
  double dot = 0;
  const auto add = [&](const Pack<float, n>& d, const Pack<float, n>& u) {
#pragma unroll
    for (int k = 0; k < n; ++k) dot += static_cast<double>(d.x[k]) * static_cast<double>(u.x[k]);
  };
  Pack<float, n> d[held], u[held];
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int c = (j * warp_size + lane) * n;
    if (c < cols) add(d[j] = load<n>(gradient + c), u[j] = load<n>(unit + c));
  }
#pragma unroll 1
  for (int c = (held * warp_size + lane) * n; c < cols; c += warp_size * n)
    add(load<n>(gradient + c), load<n>(unit + c));

  const auto along = static_cast<float>(warp_sum(dot));
  const float length = norm[row], inverse = length == 0 ? 0.0f : 1.0f / length;
  const auto write = [&](int c, Pack<float, n> x, const Pack<float, n>& y) {
#pragma unroll
    for (int k = 0; k < n; ++k) x.x[k] = (x.x[k] - y.x[k] * along) * inverse;
    store(to + c, x);
  };
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int c = (j * warp_size + lane) * n;
    if (c < cols) write(c, d[j], u[j]);
  }
#pragma unroll 1
  for (int c = (held * warp_size + lane) * n; c < cols; c += warp_size * n)
    write(c, load<n>(gradient + c), load<n>(unit + c));
}

unsigned blocks_of(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, warps)); }

}  // namespace

void l2_normalize(Stream& stream, Tensor v, Tensor z, Tensor norm) {
  const int64_t rows = v.rows();
  if (rows == 0) return;
  const auto launch = [&](auto kernel) {
    kernel<<<blocks_of(rows), warps * warp_size, 0, native(stream)>>>(v.as<float>(), z.as<float>(), norm.as<float>(),
                                                                      rows, static_cast<int>(v.cols()));
    check_launch("normalize_kernel");
  };
  whole_packs<float>(v.cols(), v.as<float>(), z.as<float>()) ? launch(normalize_kernel<4>)
                                                             : launch(normalize_kernel<1>);
}

void l2_normalize_backward(Stream& stream, Tensor dz, Tensor z, Tensor norm, Tensor dv) {
  const int64_t rows = z.rows();
  if (rows == 0) return;
  const auto launch = [&](auto kernel) {
    kernel<<<blocks_of(rows), warps * warp_size, 0, native(stream)>>>(dz.as<float>(), z.as<float>(), norm.as<float>(),
                                                                      dv.as<float>(), rows, static_cast<int>(z.cols()));
    check_launch("normalize_backward_kernel");
  };
  whole_packs<float>(z.cols(), dz.as<float>(), z.as<float>(), dv.as<float>()) ? launch(normalize_backward_kernel<4>)
                                                                              : launch(normalize_backward_kernel<1>);
}

}  // namespace notellm::gpu

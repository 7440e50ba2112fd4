#include "kernels/cuda_common.cuh"
#include "kernels/rope.h"

namespace notellm::gpu {
namespace {

constexpr int heads_at_once = 2;  // their loads are under way together

// One thread `n` pairs of every head of a row: what it reads of the table it reads once.
template <class T, int n>
__global__ void __launch_bounds__(RowGrid::threads)
    rope_kernel(T* x, const int32_t* positions, const float* table, int64_t rows, int64_t cols, int heads, int half,
                float direction) {
  const int64_t row = RowGrid::row();
  const int i = RowGrid::item() * n;
  if (row >= rows || i >= half) return;
  const float* angles = table + positions[row] * int64_t{2} * half + i;
  const Pack<float, n> cosine = load<n>(angles), sine = load<n>(angles + half);
  T* at = x + row * cols + i;
  for (int first = 0; first < heads; first += heads_at_once) {
    Pack<T, n> a[heads_at_once], b[heads_at_once];
#pragma unroll
    for (int h = 0; h < heads_at_once; ++h)
      if (first + h < heads) {
        a[h] = load<n>(at + (first + h) * 2 * half);
        b[h] = load<n>(at + (first + h) * 2 * half + half);
      }
#pragma unroll
    for (int h = 0; h < heads_at_once; ++h) {
      if (first + h >= heads) continue;
      Pack<T, n> u, w;
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float p = to_float(a[h].x[k]), q = to_float(b[h].x[k]), s = direction * sine.x[k];
        u.x[k] = from_float<T>(p * cosine.x[k] - q * s);
        w.x[k] = from_float<T>(q * cosine.x[k] + p * s);
      }
      store(at + (first + h) * 2 * half, u);
      store(at + (first + h) * 2 * half + half, w);
    }
  }
}

template <class T, int n>
void launch(Stream& stream, Tensor x, Tensor positions, Tensor table, int64_t heads, int64_t half, int direction) {
  const RowGrid g(x.rows(), half / n);
  rope_kernel<T, n><<<g.grid, g.block, 0, native(stream)>>>(x.as<T>(), positions.as<int32_t>(), table.as<float>(),
                                                            x.rows(), x.cols(), static_cast<int>(heads),
                                                            static_cast<int>(half), static_cast<float>(direction));
  check_launch("rope_kernel");
}

}  // namespace

void rope(Stream& stream, Tensor x, Tensor positions, Tensor table, int64_t heads, int64_t head_dim, int direction) {
  const int64_t half = head_dim / 2;
  if (x.rows() == 0 || heads == 0) return;
  with_float_type("x", x, [&]<class T>(T) {
    whole_packs<T>(half, x.as<T>(), table.as<float>()) && whole_packs<T>(x.cols())
        ? launch<T, Pack<T>::size>(stream, x, positions, table, heads, half, direction)
        : launch<T, 1>(stream, x, positions, table, heads, half, direction);
  });
}

}  // namespace notellm::gpu

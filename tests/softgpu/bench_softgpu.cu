// How fast softgpu interprets: a tiled product with cp.async, ldmatrix and mma, as in the attention kernels, and many
// small launches. Prints; asserts nothing about time.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>

#include "tests/support/softgpu.h"

namespace {

constexpr int tile = 64, depth = 32, row = depth + 8;  // a row of shared memory, padded against bank conflicts

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// c[n, n] = a[n, n]·b[n, n]ᵀ; blocks of 128 threads make a tile of 64 × 64, each warp 16 rows of it.
__global__ void product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n) {
  __shared__ __align__(16) __nv_bfloat16 s[2][2][tile][row];
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const __nv_bfloat16* from[2] = {a + size_t(blockIdx.y) * tile * n, b + size_t(blockIdx.x) * tile * n};
  const auto fetch = [&](int stage, int k) {
    for (int m = 0; m < 2; ++m)
      for (int part = t; part < tile * depth / 8; part += 128) {
        const int r = part / (depth / 8), col = part % (depth / 8) * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&s[stage][m][r][col])),
                     "l"(from[m] + size_t(r) * n + k + col)
                     : "memory");
      }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sum[8][4] = {};
  fetch(0, 0);
  for (int k = 0, stage = 0; k < n; k += depth, stage ^= 1) {
    if (k + depth < n)
      fetch(stage ^ 1, k + depth);
    else
      asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    for (int kk = 0; kk < depth; kk += 16) {
      unsigned x[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                   : "r"(shared_address(&s[stage][0][warp * 16 + lane % 16][kk + lane / 16 * 8])));
      for (int column = 0; column < 8; ++column) {
        unsigned y[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(y[0]), "=r"(y[1])
                     : "r"(shared_address(&s[stage][1][column * 8 + lane % 8][kk + lane / 8 % 2 * 8])));
        float* d = sum[column];
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
            "%1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
      }
    }
    __syncthreads();
  }
  for (int column = 0; column < 8; ++column)
    for (int i = 0; i < 4; ++i) {
      const int r = blockIdx.y * tile + warp * 16 + lane / 4 + i / 2 * 8,
                col = blockIdx.x * tile + column * 8 + lane % 4 * 2 + i % 2;
      c[size_t(r) * n + col] = sum[column][i];
    }
}

// Element by element, as most kernels are: exp, divisions, a sum of the warp.
__global__ void elementwise(const float* x, float* y, int n) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    float v = x[i];
    for (int round = 0; round < 4; ++round) v = v / (1 + __expf(-v)) + 0.5f * v;
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffff, v, offset);
    y[i] = v;
  }
}
__global__ void small(float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] += 1; }

template <class F>
void measure(const char* name, F&& launch) {
  notellm::softgpu_support::reset_counters();
  const auto begin = std::chrono::steady_clock::now();
  launch();
  if (cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  softgpu::Counters c;
  notellm::softgpu_support::counters(name, c);
  std::printf(
      "%-12s %7.3f s %8.1f million thread-instructions/s %8.1f million instructions of warps/s %8.0f launches/s\n",
      name, seconds, static_cast<double>(c.thread_instructions) / seconds * 1e-6,
      static_cast<double>(c.instructions) / seconds * 1e-6, static_cast<double>(c.launches) / seconds);
}

}  // namespace

int main() {
  constexpr int n = 512, elements = 1 << 20;
  __nv_bfloat16 *a, *b;
  float *c, *x;
  if (cudaMalloc(&a, n * n * 2) || cudaMalloc(&b, n * n * 2) || cudaMalloc(&c, n * n * 4) ||
      cudaMalloc(&x, elements * 4))
    return 1;
  cudaMemset(a, 0, n * n * 2);
  cudaMemset(b, 0, n * n * 2);
  cudaMemset(c, 0, n * n * 4);
  cudaMemset(x, 0, elements * 4);
  measure("product", [&] { product<<<dim3(n / tile, n / tile), 128>>>(a, b, c, n); });
  measure("elementwise", [&] { elementwise<<<256, 256>>>(x, x, elements); });
  measure("small", [&] {
    for (int i = 0; i < 10000; ++i) small<<<2, 64>>>(x + i % 64 * 128);
  });
  for (void* p : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(c), static_cast<void*>(x)})
    cudaFree(p);
}

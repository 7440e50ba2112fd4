// A program of two .cu files, built in each of the ways in which nvcc packs PTX; tells by its exit code whether the
// kernels of both ran.
#include <cuda_runtime.h>

#include <cstdio>

void launch_other(int* x);

__constant__ int three = 3;
__global__ void set(int* x) { x[threadIdx.x] = three; }

int main() {
  int* x = nullptr;
  int got[32] = {};
  cudaMalloc(&x, sizeof got);
  set<<<1, 32>>>(x);
  launch_other(x);
  const cudaError_t status = cudaMemcpy(got, x, sizeof got, cudaMemcpyDefault);
  cudaFree(x);
  std::printf("%s: %d\n", cudaGetErrorName(status), got[31]);
  return status == cudaSuccess && got[31] == 6 + 31 ? 0 : 1;
}

// Kernels with bugs, each of which softgpu has to find, with its kernel, line, block and thread; and correct kernels of
// the same patterns, in which it must find nothing.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "tests/support/softgpu.h"

namespace {

using notellm::softgpu_support::take_findings;

constexpr int words = 1024;

#define CUDA(call) ASSERT_EQ(call, cudaSuccess)

// The line of this file that ends with "// BUG name".
std::string line_of(const std::string& name) {
  std::ifstream file(NOTELLM_SOURCE_DIR "/tests/softgpu/test_softgpu_findings.cu");
  std::string text;
  for (int line = 1; std::getline(file, text); ++line)
    if (text.size() > name.size() && text.ends_with("// BUG " + name)) return std::to_string(line);
  return "no such line";
}

class SoftgpuFindings : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(notellm::softgpu_support::present()) << "run with LD_LIBRARY_PATH at softgpu's libraries";
    CUDA(cudaMalloc(&x_, words * sizeof(int)));
    CUDA(cudaMalloc(&y_, words * sizeof(int)));
    CUDA(cudaMalloc(&fresh_, words * sizeof(int)));
    CUDA(cudaMemset(x_, 0, words * sizeof(int)));
    CUDA(cudaMemset(y_, 0, words * sizeof(int)));
  }
  void TearDown() override {
    cudaDeviceReset();
    EXPECT_EQ(take_findings(), "");
  }
  // One of the findings so far, which are then forgotten, has all of these parts.
  void expect_finding(const std::string& kind, const std::string& name, const std::string& where,
                      const std::string& text) {
    const std::string all = take_findings();
    const std::string parts[] = {kind + " in " + name + " at ", "test_softgpu_findings.cu:" + line_of(name), where,
                                 text};
    bool found = false;
    for (size_t at = 0; at < all.size();) {
      const size_t next = std::min(all.find("softgpu: ", at + 1), all.size());
      const std::string finding = all.substr(at, next - at);
      found |= std::all_of(std::begin(parts), std::end(parts),
                           [&](const std::string& part) { return finding.find(part) != std::string::npos; });
      at = next;
    }
    EXPECT_TRUE(found) << kind << " in " << name << ", line " << line_of(name) << ", " << where << ", " << text << "\n"
                       << all;
  }
  void expect_bug(void (*kernel)(int*, int*), dim3 grid, dim3 block, const std::string& kind, const std::string& name,
                  const std::string& where, const std::string& text, int dynamic = 0) {
    kernel<<<grid, block, dynamic>>>(x_, y_);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    cudaDeviceSynchronize();
    expect_finding(kind, name, where, text);
  }
  void expect_nothing(void (*kernel)(int*, int*), dim3 grid, dim3 block) {
    kernel<<<grid, block>>>(x_, y_);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(take_findings(), "");
  }

  int *x_ = nullptr, *y_ = nullptr, *fresh_ = nullptr;
};

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
__device__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Bounds and alignment.

__global__ void one_too_many(int* x, int*) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= words) x[i] = i;  // BUG one_too_many
}
__global__ void before_the_beginning(int*, int* y) {
  y[static_cast<int>(threadIdx.x) - 1] = 0;  // BUG before_the_beginning
}
__global__ void one_byte_beyond(int* x, int*) {
  char* bytes = reinterpret_cast<char*>(x);
  if (threadIdx.x == 7) bytes[words * 4] = 1;  // BUG one_byte_beyond
}
__global__ void far_away(int* x, int*) {
  x[int64_t{1} << 40] = 0;  // BUG far_away
}
__global__ void shared_too_far(int* x, int*) {
  extern __shared__ int s[];
  s[threadIdx.x] = 1;  // BUG shared_too_far
  x[threadIdx.x] = s[threadIdx.x];
}
__global__ void local_too_far(int* x, int*) {
  volatile int local[4];
  for (int i = 0; i < 4; ++i) local[i] = i;
  x[threadIdx.x] = local[threadIdx.x];  // BUG local_too_far
}
__global__ void misaligned(int* x, int* y) {
  const int4 v = *reinterpret_cast<const int4*>(x + threadIdx.x * 2);  // BUG misaligned
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

TEST_F(SoftgpuFindings, Bounds) {
  expect_bug(one_too_many, 5, 256, "out_of_bounds", "one_too_many", "block (4, 0, 0), thread (0, 0, 0)",
             "4 bytes at 0 bytes behind the end of 4096 bytes of cudaMalloc");
}
TEST_F(SoftgpuFindings, BeforeTheBeginning) {
  expect_bug(before_the_beginning, 1, 32, "out_of_bounds", "before_the_beginning", "block (0, 0, 0), thread (0, 0, 0)",
             "4 bytes before the beginning of 4096 bytes");
}
TEST_F(SoftgpuFindings, OneByteBeyond) {
  expect_bug(one_byte_beyond, 1, 8, "out_of_bounds", "one_byte_beyond", "thread (7, 0, 0)",
             "1 bytes at 0 bytes behind");
}
TEST_F(SoftgpuFindings, FarAway) {
  expect_bug(far_away, 1, 1, "out_of_bounds", "far_away", "block (0, 0, 0), thread (0, 0, 0)", "in no allocation");
}
TEST_F(SoftgpuFindings, AfterFree) {
  CUDA(cudaFree(x_));
  expect_bug(one_too_many, 1, 256, "out_of_bounds", "one_too_many", "thread (0, 0, 0)", "");
}
TEST_F(SoftgpuFindings, SharedBounds) {
  expect_bug(shared_too_far, 1, 64, "out_of_bounds", "shared_too_far", "thread (32, 0, 0)", "the block's 128 bytes",
             128);
}
TEST_F(SoftgpuFindings, LocalBounds) {
  expect_bug(local_too_far, 1, 5, "out_of_bounds", "local_too_far", "thread (4, 0, 0)",
             "byte 16 of 16 bytes of local memory");
}
TEST_F(SoftgpuFindings, Misaligned) {
  expect_bug(misaligned, 1, 32, "misaligned", "misaligned", "thread (1, 0, 0)", "16 bytes at address");
}

// Never written.

__global__ void reads_fresh(int* x, int* fresh) {
  x[threadIdx.x] = fresh[threadIdx.x] + 1;  // BUG reads_fresh
}
__global__ void reads_fresh_shared(int* x, int*) {
  __shared__ int s[64];
  if (threadIdx.x < 32) s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x];  // BUG reads_fresh_shared
}
__global__ void counts_fresh(int*, int* fresh) {
  atomicAdd(fresh + threadIdx.x, 1);  // BUG counts_fresh
}
TEST_F(SoftgpuFindings, NeverWritten) {
  y_ = fresh_;
  expect_bug(reads_fresh, 2, 32, "uninitialized", "reads_fresh", "thread (0, 0, 0)", "reads byte 0 of 4096 bytes");
}
TEST_F(SoftgpuFindings, NeverWrittenShared) {
  expect_bug(reads_fresh_shared, 1, 64, "uninitialized", "reads_fresh_shared", "thread (32, 0, 0)",
             "reads shared byte 128");
}
TEST_F(SoftgpuFindings, NeverWrittenAtomic) {
  y_ = fresh_;
  expect_bug(counts_fresh, 1, 32, "uninitialized", "counts_fresh", "thread (0, 0, 0)", "reads byte 0");
}

// Races.

__global__ void write_read(int* x, int*) {
  __shared__ int s[64];
  s[threadIdx.x] = 1;
  x[threadIdx.x] = s[63 - threadIdx.x];  // BUG write_read
}
__global__ void read_write(int* x, int*) {
  __shared__ int s[64];
  s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[63 - threadIdx.x];
  s[threadIdx.x] = 2;  // BUG read_write
}
__global__ void write_write(int* x, int*) {
  __shared__ int s[64];
  s[threadIdx.x / 2] = static_cast<int>(threadIdx.x);  // BUG write_write
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x / 2];
}
__global__ void in_a_warp(int* x, int*) {
  __shared__ int s[32];
  s[threadIdx.x] = 1;
  x[threadIdx.x] = s[31 - threadIdx.x];  // BUG in_a_warp
}
__global__ void in_a_block(int* x, int*) {
  x[threadIdx.x] = 1;
  x[threadIdx.x ^ 32] = 2;  // BUG in_a_block
}
__global__ void between_blocks(int* x, int*) {
  if (threadIdx.x == 3) x[5] = static_cast<int>(blockIdx.x);  // BUG between_blocks
}
__global__ void reads_other_block(int* x, int* y) {
  x[blockIdx.x * 32 + threadIdx.x] = 1;
  y[blockIdx.x * 32 + threadIdx.x] = x[(1 - blockIdx.x) * 32 + threadIdx.x];  // BUG reads_other_block
}
TEST_F(SoftgpuFindings, SharedRaces) {
  expect_bug(write_read, 1, 64, "race", "write_read", "block (0, 0, 0), thread (32, 0, 0)", "thread (31, 0, 0) wrote");
  expect_bug(read_write, 1, 64, "race", "read_write", "thread (32, 0, 0)", "thread (31, 0, 0) read");
  expect_bug(write_write, 1, 64, "race", "write_write", "thread (1, 0, 0)", "thread (0, 0, 0) wrote");
  expect_bug(in_a_warp, 1, 32, "race", "in_a_warp", "thread (0, 0, 0)", "thread (31, 0, 0) wrote");
}
TEST_F(SoftgpuFindings, GlobalRaces) {
  expect_bug(in_a_block, 1, 64, "race", "in_a_block", "thread (32, 0, 0)", "thread (0, 0, 0) of its block wrote");
  expect_bug(between_blocks, 8, 32, "race", "between_blocks", "thread (3, 0, 0)", "writes byte 20");
  expect_bug(reads_other_block, 2, 32, "race", "reads_other_block", "thread (0, 0, 0)", "block");
}
__global__ void second_stream(int* x, int*) {
  x[threadIdx.x] += 1;  // BUG second_stream
}
TEST_F(SoftgpuFindings, BetweenStreams) {
  cudaStream_t a, b;
  CUDA(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
  CUDA(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
  CUDA(cudaDeviceSynchronize());
  second_stream<<<1, 32, 0, a>>>(x_, y_);
  second_stream<<<1, 32, 0, b>>>(x_, y_);
  CUDA(cudaDeviceSynchronize());
  expect_finding("stream_order", "second_stream", "block (0, 0, 0), thread (0, 0, 0)", "kernel second_stream");
  cudaEvent_t event;
  CUDA(cudaEventCreate(&event));
  second_stream<<<1, 32, 0, a>>>(x_, y_);
  CUDA(cudaEventRecord(event, a));
  CUDA(cudaStreamWaitEvent(b, event, 0));
  second_stream<<<1, 32, 0, b>>>(x_, y_);
  CUDA(cudaDeviceSynchronize());
  EXPECT_EQ(take_findings(), "");
}

// Barriers and what warps do together.

__global__ void divergent_barrier(int* x, int*) {
  if (threadIdx.x % 32 < 16) __syncthreads();  // BUG divergent_barrier
  x[threadIdx.x] = 1;
  __syncthreads();
}
__global__ void shuffle_without_all(int* x, int*) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);  // BUG shuffle_without_all
}
__global__ void shuffle_after_exit(int* x, int*) {
  if (threadIdx.x == 5) return;
  x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);  // BUG shuffle_after_exit
}
TEST_F(SoftgpuFindings, Barriers) {
  expect_bug(divergent_barrier, 1, 32, "barrier", "divergent_barrier", "block (0, 0, 0), thread (", "lanes 0xffff0000");
}
TEST_F(SoftgpuFindings, ShuffleWithoutAll) {
  shuffle_without_all<<<1, 32>>>(x_, y_);
  CUDA(cudaDeviceSynchronize());
  expect_finding("barrier", "shuffle_without_all", "thread (0, 0, 0)", "lanes 0xffff0000 have exited");
}
TEST_F(SoftgpuFindings, ShuffleAfterExit) {
  shuffle_after_exit<<<1, 32>>>(x_, y_);
  CUDA(cudaDeviceSynchronize());
  expect_finding("barrier", "shuffle_after_exit", "thread (0, 0, 0)", "lanes 0x00000020 have exited");
}

// cp.async.

__global__ void no_wait(int* x, int* y) {
  __shared__ int s[32];
  copy_async(s + threadIdx.x, x + threadIdx.x);
  commit();
  y[threadIdx.x] = s[threadIdx.x];  // BUG no_wait
  wait<0>();
}
__global__ void wait_without_barrier(int* x, int* y) {
  __shared__ int s[32];
  copy_async(s + threadIdx.x, x + threadIdx.x);
  commit();
  wait<0>();
  y[threadIdx.x] = s[31 - threadIdx.x];  // BUG wait_without_barrier
}
__global__ void open_at_the_end(int* x, int*) {
  __shared__ int s[32];
  const unsigned to = shared_address(s + threadIdx.x);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(x) : "memory");  // BUG open_at_the_end
  commit();
}
TEST_F(SoftgpuFindings, AsyncCopies) {
  expect_bug(no_wait, 1, 32, "missing_wait", "no_wait", "thread (0, 0, 0)", "reads shared byte 0");
  int y = 0;
  CUDA(cudaMemcpy(&y, y_, sizeof y, cudaMemcpyDeviceToHost));
  EXPECT_EQ(y, -1);  // NaN, as a float
  expect_bug(wait_without_barrier, 1, 32, "race", "wait_without_barrier", "thread (0, 0, 0)",
             "thread (31, 0, 0) wrote");
  expect_bug(open_at_the_end, 1, 32, "missing_wait", "open_at_the_end", "thread (0, 0, 0)", "the block ends");
}

// Correct kernels.

__global__ void block_sum(int* x, int* y) {
  __shared__ int sums[8];
  int sum = x[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0;
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
    if (threadIdx.x == 0) sums[0] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = sums[0];
}
__global__ void tree_sum(int* x, int* y) {
  __shared__ int s[256];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int n = 128; n > 0; n /= 2) {
    if (threadIdx.x < n) s[threadIdx.x] += s[threadIdx.x + n];
    __syncthreads();
  }
  if (threadIdx.x == 0) y[blockIdx.x] = s[0];
}
__global__ void pipeline(int* x, int* y) {  // two stages, 8 tiles of 128 words
  __shared__ int s[2][128];
  const int t = static_cast<int>(threadIdx.x);
  copy_async(&s[0][t], x + t);
  commit();
  int sum = 0;
  for (int tile = 0; tile < 8; ++tile) {
    if (tile + 1 < 8) copy_async(&s[(tile + 1) % 2][t], x + (tile + 1) * 128 + t);
    commit();
    wait<1>();
    __syncthreads();
    sum += s[tile % 2][127 - t];
    __syncthreads();
  }
  y[t] = sum;
}
__global__ void warp_staging(int* x, int* y) {
  __shared__ int s[4][32];
  int* mine = s[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < 3; ++round) {
    mine[lane] = x[round * 128 + threadIdx.x];
    __syncwarp();
    y[round * 128 + threadIdx.x] = mine[31 - lane];
    __syncwarp();
  }
}
__global__ void grid_stride(int* x, int* y) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < words;
       i += static_cast<int>(gridDim.x * blockDim.x))
    y[i] = 2 * x[i];
}
__global__ void counting(int* x, int* y) {
  __shared__ int bins[4];
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[threadIdx.x % 4], 1);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(y + threadIdx.x, bins[threadIdx.x]);
  if (x[threadIdx.x] > 0) return;  // threads that leave before the others' barrier
}
__global__ void some_leave(int* x, int* y) {
  if (threadIdx.x >= 40) return;
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[39 - threadIdx.x];
}
__global__ void half_warps(int* x, int* y) {
  const unsigned members = threadIdx.x % 32 < 16 ? 0xffff : 0xffff0000;
  y[threadIdx.x] = __shfl_xor_sync(members, x[threadIdx.x], 8);
}
TEST_F(SoftgpuFindings, NoneInCorrectKernels) {
  expect_nothing(block_sum, 4, 256);
  expect_nothing(tree_sum, 4, 256);
  expect_nothing(pipeline, 1, 128);
  expect_nothing(warp_staging, 1, 128);
  expect_nothing(grid_stride, 3, 96);
  expect_nothing(counting, 8, 64);
  expect_nothing(some_leave, 1, 64);
  expect_nothing(half_warps, 1, 64);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

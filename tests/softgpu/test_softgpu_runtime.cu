// The stand-in libcudart: calls, the order of work, launches that are refused, and the bugs that it has to find.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/support/softgpu.h"

namespace {

using notellm::softgpu_support::take_findings;

__global__ void scale(float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= 2;
}
__global__ void __launch_bounds__(128) scale_small_block(float* x, int n) {
  if (threadIdx.x == 0)
    for (int i = 0; i < n; ++i) x[i] *= 2;
}
__device__ float variable[4];
__global__ void copy_variable(float* x) { x[threadIdx.x] = variable[threadIdx.x]; }

constexpr int n = 1000;
constexpr size_t bytes = n * sizeof(float);

#define CUDA(call) ASSERT_EQ(call, cudaSuccess)

void launch_scale(float* x, cudaStream_t stream = nullptr) { scale<<<(n + 255) / 256, 256, 0, stream>>>(x, n); }

cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  return stream;
}

// Every test begins and ends without findings; what it seeds it takes.
class SoftgpuRuntime : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(notellm::softgpu_support::present()) << "run with LD_LIBRARY_PATH at softgpu's libraries";
    CUDA(cudaMalloc(&x_, bytes));
    CUDA(cudaMallocHost(&pinned_, bytes));
    for (int i = 0; i < n; ++i) pinned_[i] = static_cast<float>(i);
    a_ = new_stream();
    b_ = new_stream();
    CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  void TearDown() override {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaEventDestroy(event_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(a_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(b_), cudaSuccess);
    EXPECT_EQ(cudaFree(x_), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned_), cudaSuccess);
    EXPECT_EQ(take_findings(), "");
  }
  // x_ := 0, 1, 2, … on stream a_, seen by the host's later work.
  void upload() {
    CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
    CUDA(cudaStreamSynchronize(a_));
  }
  void expect_finding(const std::string& part) { EXPECT_NE(take_findings().find(part), std::string::npos) << part; }

  float* x_ = nullptr;
  float* pinned_ = nullptr;
  cudaStream_t a_ = nullptr, b_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

TEST_F(SoftgpuRuntime, CopiesLaunchesAndFills) {
  upload();
  launch_scale(x_, a_);
  CUDA(cudaGetLastError());
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDeviceToHost, a_));
  CUDA(cudaStreamSynchronize(a_));
  for (int i = 0; i < n; ++i) ASSERT_EQ(pinned_[i], 2.0f * static_cast<float>(i));
  CUDA(cudaMemsetAsync(x_, 0, bytes, a_));
  std::vector<float> host(n, 1.0f);
  CUDA(cudaMemcpyAsync(host.data(), x_, bytes, cudaMemcpyDefault, a_));  // pageable: done when it returns
  EXPECT_EQ(host, std::vector<float>(n, 0.0f));
}

TEST_F(SoftgpuRuntime, PageableMemoryIsStagedAtOnce) {
  std::vector<float> host(n, 3.0f), result(n);
  CUDA(cudaMemcpyAsync(x_, host.data(), bytes, cudaMemcpyDefault, a_));
  host.assign(n, 4.0f);
  CUDA(cudaMemcpyAsync(result.data(), x_, bytes, cudaMemcpyDefault, a_));
  EXPECT_EQ(result, std::vector<float>(n, 3.0f));
}

TEST_F(SoftgpuRuntime, VariablesOfKernels) {
  const float four[4] = {1, 2, 3, 4}, two[2] = {7, 8};
  CUDA(cudaMemcpyToSymbol(variable, four, sizeof four));
  CUDA(cudaMemcpyToSymbol(variable, two, sizeof two, 2 * sizeof(float)));
  copy_variable<<<1, 4>>>(x_);
  CUDA(cudaGetLastError());
  float got[4];
  CUDA(cudaMemcpy(got, x_, sizeof got, cudaMemcpyDeviceToHost));
  EXPECT_EQ(got[0], 1);
  EXPECT_EQ(got[3], 8);
  EXPECT_EQ(cudaMemcpyToSymbol(pinned_, four, 4), cudaErrorInvalidSymbol);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidSymbol);
}

// The order of work.

TEST_F(SoftgpuRuntime, EventsOrderStreams) {
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaEventRecord(event_, a_));
  CUDA(cudaStreamWaitEvent(b_, event_, 0));
  launch_scale(x_, b_);
  CUDA(cudaGetLastError());
  CUDA(cudaEventRecord(event_, b_));
  CUDA(cudaEventSynchronize(event_));
  launch_scale(x_, a_);  // the host waited
  CUDA(cudaGetLastError());
}

TEST_F(SoftgpuRuntime, EventsPassOnWhatTheirStreamWaitsFor) {
  upload();
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaEventRecord(event_, a_));
  CUDA(cudaStreamWaitEvent(b_, event_, 0));
  CUDA(cudaEventRecord(event_, b_));  // no work of its own there
  EXPECT_EQ(cudaEventQuery(event_), cudaErrorNotReady);
  CUDA(cudaEventSynchronize(event_));
  EXPECT_EQ(pinned_[5], 5);
  launch_scale(x_, b_);
  CUDA(cudaGetLastError());
}

TEST_F(SoftgpuRuntime, FindsAMissingEvent) {
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaEventRecord(event_, a_));
  launch_scale(x_, b_);
  CUDA(cudaGetLastError());
  CUDA(cudaDeviceSynchronize());
  expect_finding("stream_order");
}

TEST_F(SoftgpuRuntime, FindsAnEventRecordedTooEarly) {
  CUDA(cudaEventRecord(event_, a_));
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaStreamWaitEvent(b_, event_, 0));
  launch_scale(x_, b_);
  CUDA(cudaGetLastError());
  CUDA(cudaStreamSynchronize(b_));
  CUDA(cudaStreamSynchronize(a_));
  const std::string findings = take_findings();  // scale ran first: nothing was written yet
  EXPECT_NE(findings.find("stream_order"), std::string::npos) << findings;
}

// A kernel that reads and then writes takes the place of an earlier reader on another stream, which is not forgotten.
TEST_F(SoftgpuRuntime, FindsAReaderBehindAnother) {
  upload();
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, b_));
  launch_scale(x_, a_);
  CUDA(cudaGetLastError());
  CUDA(cudaStreamSynchronize(b_));
  CUDA(cudaStreamSynchronize(a_));
  expect_finding("stream_order");
}
// … nor where both readers are copies, and the write is ordered after the second alone.
TEST_F(SoftgpuRuntime, FindsTheFirstOfTwoReaders) {
  upload();
  float* y = nullptr;
  CUDA(cudaMalloc(&y, bytes));
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, b_));
  CUDA(cudaMemcpyAsync(y, x_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaMemsetAsync(x_, 0, bytes, a_));
  CUDA(cudaStreamSynchronize(b_));
  CUDA(cudaStreamSynchronize(a_));
  expect_finding("stream_order");
  CUDA(cudaFree(y));
}

TEST_F(SoftgpuRuntime, TheDefaultStreamOrdersBlockingStreamsOnly) {
  cudaStream_t blocking;
  CUDA(cudaStreamCreate(&blocking));
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, blocking));
  launch_scale(x_);
  CUDA(cudaGetLastError());
  launch_scale(x_, blocking);
  CUDA(cudaGetLastError());
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, blocking));
  CUDA(cudaStreamSynchronize(blocking));
  EXPECT_EQ(pinned_[5], 20);  // both launches ran
  EXPECT_EQ(take_findings(), "");
  launch_scale(x_);
  CUDA(cudaGetLastError());
  launch_scale(x_, a_);
  CUDA(cudaGetLastError());
  CUDA(cudaDeviceSynchronize());
  expect_finding("stream_order");
  CUDA(cudaStreamDestroy(blocking));
}

TEST_F(SoftgpuRuntime, QueriesEnd) {
  EXPECT_EQ(cudaStreamQuery(a_), cudaSuccess);
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaEventRecord(event_, a_));
  EXPECT_EQ(cudaEventQuery(event_), cudaErrorNotReady);
  while (cudaEventQuery(event_) == cudaErrorNotReady) {
  }
  launch_scale(x_, b_);  // the host knows that the copy is done
  CUDA(cudaGetLastError());
  while (cudaStreamQuery(b_) == cudaErrorNotReady) {
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(SoftgpuRuntime, ElapsedTime) {
  cudaEvent_t from, to;
  CUDA(cudaEventCreate(&from));
  CUDA(cudaEventCreate(&to));
  CUDA(cudaEventRecord(from, a_));
  CUDA(cudaEventRecord(to, a_));
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, from, to), cudaErrorNotReady);
  CUDA(cudaEventSynchronize(to));
  CUDA(cudaEventElapsedTime(&milliseconds, from, to));
  EXPECT_GE(milliseconds, 0);
  CUDA(cudaEventDestroy(from));
  CUDA(cudaEventDestroy(to));
}

TEST_F(SoftgpuRuntime, HostThreadsHaveTheirOwnStreams) {
  const auto work = [](cudaStream_t stream) {
    float *x, *pinned;
    ASSERT_EQ(cudaMalloc(&x, bytes), cudaSuccess);
    ASSERT_EQ(cudaMallocHost(&pinned, bytes), cudaSuccess);
    std::memset(pinned, 0, bytes);
    for (int i = 0; i < 200; ++i) {
      pinned[7] = static_cast<float>(i);
      ASSERT_EQ(cudaMemcpyAsync(x, pinned, bytes, cudaMemcpyDefault, stream), cudaSuccess);
      launch_scale(x, stream);
      ASSERT_EQ(cudaGetLastError(), cudaSuccess);
      ASSERT_EQ(cudaMemcpyAsync(pinned, x, bytes, cudaMemcpyDefault, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      ASSERT_EQ(pinned[7], 2.0f * static_cast<float>(i));
    }
    ASSERT_EQ(cudaFree(x), cudaSuccess);
    ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
  };
  std::thread other(work, b_);
  work(a_);
  other.join();
}

// Pinned memory that the host touches before it has waited.

TEST_F(SoftgpuRuntime, FindsASourceChangedTooEarly) {
  CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  pinned_[5] = 77;
  CUDA(cudaStreamSynchronize(a_));
  expect_finding("pinned memory");
}

TEST_F(SoftgpuRuntime, ADestinationReadTooEarlyIsNotANumber) {
  upload();
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, a_));
  EXPECT_TRUE(std::isnan(pinned_[5]));
  CUDA(cudaStreamSynchronize(a_));
  EXPECT_EQ(pinned_[5], 5);
}

TEST_F(SoftgpuRuntime, FindsADestinationWrittenTooEarly) {
  upload();
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, a_));
  pinned_[5] = 77;
  CUDA(cudaStreamSynchronize(a_));
  expect_finding("pinned memory");
}

TEST_F(SoftgpuRuntime, OneBufferForSeveralCopies) {  // down, up again, down: in the stream's order, so all is well
  upload();
  for (int i = 0; i < 2; ++i) {
    CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, a_));
    CUDA(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDefault, a_));
  }
  CUDA(cudaMemcpyAsync(pinned_, x_, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaStreamSynchronize(a_));
  EXPECT_EQ(pinned_[n - 1], n - 1);
}

TEST_F(SoftgpuRuntime, FindsPinnedMemoryFreedTooEarly) {
  float* other;
  CUDA(cudaMallocHost(&other, bytes));
  std::memset(other, 0, bytes);
  CUDA(cudaMemcpyAsync(x_, other, bytes, cudaMemcpyDefault, a_));
  CUDA(cudaFreeHost(other));
  expect_finding("still to use it");
}

// Launches and calls that are refused.

TEST_F(SoftgpuRuntime, RefusesBadLaunches) {
  upload();
  scale<<<1, 1025>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  scale<<<0, 32>>>(x_, n);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  scale<<<dim3(1, 65536), 32>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  scale<<<1, dim3(1, 1, 65)>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  scale_small_block<<<1, 256>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchOutOfResources);
}

TEST_F(SoftgpuRuntime, SharedMemoryBeyond48KiBMustBeAskedFor) {
  upload();
  scale<<<4, 256, 60 << 10>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  int most = 0;
  CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  EXPECT_EQ(cudaFuncSetAttribute(scale, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  CUDA(cudaFuncSetAttribute(scale, cudaFuncAttributeMaxDynamicSharedMemorySize, 60 << 10));
  scale<<<4, 256, 60 << 10>>>(x_, n);
  CUDA(cudaGetLastError());
  scale<<<4, 256, 61 << 10>>>(x_, n);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  int blocks = 0;
  CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale, 256, 60 << 10));
  EXPECT_GE(blocks, 2);
}

TEST_F(SoftgpuRuntime, FindsAnUncheckedLaunch) {
  upload();
  scale<<<1, 2000, 0, a_>>>(x_, n);
  CUDA(cudaStreamSynchronize(a_));
  expect_finding("unchecked_launch in scale");
  scale<<<1, 2000, 0, a_>>>(x_, n);
  launch_scale(x_, a_);
  expect_finding("unchecked_launch in scale");
  scale<<<1, 2000, 0, a_>>>(x_, n);
  cudaStreamQuery(a_);
  expect_finding("unchecked_launch in scale");
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

TEST_F(SoftgpuRuntime, FindsBadFrees) {
  float* freed;
  CUDA(cudaMalloc(&freed, bytes));
  CUDA(cudaFree(freed));
  EXPECT_EQ(cudaFree(freed), cudaErrorInvalidValue);
  expect_finding("invalid_call in cudaFree");
  EXPECT_EQ(cudaFree(x_ + 64), cudaErrorInvalidValue);
  expect_finding("invalid_call in cudaFree");
  std::vector<float> host(4);
  EXPECT_EQ(cudaFreeHost(host.data()), cudaErrorInvalidValue);
  expect_finding("invalid_call in cudaFreeHost");
  cudaStream_t stream = new_stream();
  CUDA(cudaStreamDestroy(stream));
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  expect_finding("invalid_call in cudaStreamSynchronize");
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
}

TEST_F(SoftgpuRuntime, FindsCopiesBeyondTheEnd) {
  EXPECT_EQ(cudaMemcpyAsync(x_ + 1, pinned_, bytes, cudaMemcpyDefault, a_), cudaErrorInvalidValue);
  expect_finding("beyond");
  EXPECT_EQ(cudaMemcpyAsync(x_, pinned_ + 1, bytes, cudaMemcpyDefault, a_), cudaErrorInvalidValue);
  expect_finding("beyond");
  EXPECT_EQ(cudaMemsetAsync(x_, 0, bytes + 1, a_), cudaErrorInvalidValue);
  expect_finding("invalid_call");
  EXPECT_EQ(cudaMemcpyAsync(x_, pinned_, bytes, cudaMemcpyDeviceToHost, a_), cudaErrorInvalidValue);
  expect_finding("kind");
  cudaGetLastError();
}

TEST_F(SoftgpuRuntime, AnIllegalAccessStays) {
  upload();
  scale<<<8, 256, 0, a_>>>(x_, 8 * 256);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(a_), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaMemsetAsync(x_, 0, 4, a_), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  expect_finding("out_of_bounds");
  CUDA(cudaDeviceReset());  // everything is gone with it
  SetUp();
}

TEST_F(SoftgpuRuntime, PointersAndDevices) {
  cudaPointerAttributes attributes;
  CUDA(cudaPointerGetAttributes(&attributes, x_ + 3));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  CUDA(cudaPointerGetAttributes(&attributes, pinned_ + 3));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  CUDA(cudaPointerGetAttributes(&attributes, &attributes));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  cudaDeviceProp properties;
  CUDA(cudaGetDeviceProperties(&properties, 0));
  const char* arch = std::getenv("SOFTGPU_ARCH");
  EXPECT_EQ(properties.major * 10 + properties.minor, arch ? std::atoi(arch) : 80);
  EXPECT_EQ(cudaSetDevice(8), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  cudaFuncAttributes function;
  CUDA(cudaFuncGetAttributes(&function, scale_small_block));
  EXPECT_EQ(function.maxThreadsPerBlock, 128);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

// The stand-in libnccl under mpirun: every call against numbers written down here, and ranks that do not agree.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <nccl.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/support/softgpu.h"

namespace {

using notellm::softgpu_support::take_findings;

#define CUDA(call) ASSERT_EQ(call, cudaSuccess)
#define NCCL(call) ASSERT_EQ(call, ncclSuccess)

int rank = 0, ranks = 1;

// Device memory with `values` in it, for one call.
template <class T>
class Array {
 public:
  Array(std::vector<T> values, cudaStream_t stream) : size_(values.size()), stream_(stream) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(data_, values.data(), size_ * sizeof(T), cudaMemcpyDefault, stream_), cudaSuccess);
  }
  ~Array() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    EXPECT_EQ(cudaMemcpyAsync(result.data(), data_, size_ * sizeof(T), cudaMemcpyDefault, stream_), cudaSuccess);
    return result;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
  cudaStream_t stream_;
};

class SoftgpuNccl : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(notellm::softgpu_support::present()) << "run with LD_LIBRARY_PATH at softgpu's libraries";
    CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    ncclUniqueId id;
    if (rank == 0) NCCL(ncclGetUniqueId(&id));
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    NCCL(ncclCommInitRank(&comm_, ranks, id, rank));
  }
  void TearDown() override {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(ncclCommDestroy(comm_), ncclSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(take_findings(), "");
  }
  ncclResult_t async_error() {
    ncclResult_t error = ncclSuccess;
    EXPECT_EQ(ncclCommGetAsyncError(comm_, &error), ncclSuccess);
    return error;
  }

  cudaStream_t stream_ = nullptr;
  ncclComm_t comm_ = nullptr;
};

// f(0) op f(1) op … over ranks.
template <class T, class F>
T sum(F f) {
  T result = f(0);
  for (int r = 1; r < ranks; ++r) result = static_cast<T>(result + f(r));
  return result;
}

TEST_F(SoftgpuNccl, AllReduce) {
  const size_t n = (5 << 20) / sizeof(float) + 3;  // several pieces
  const auto value = [](int r, size_t i) { return std::sin(static_cast<float>(i + 7 * r)); };
  std::vector<float> mine(n);
  for (size_t i = 0; i < n; ++i) mine[i] = value(rank, i);
  const Array<float> from(mine, stream_), to(mine, stream_);
  NCCL(ncclAllReduce(from.data(), to.data(), n, ncclFloat32, ncclSum, comm_, stream_));
  NCCL(ncclAllReduce(from.data(), from.data(), n, ncclFloat32, ncclMax, comm_, stream_));
  const std::vector<float> sums = to.values(), maxima = from.values();
  for (size_t i = 0; i < n; ++i) {
    ASSERT_EQ(sums[i], sum<float>([&](int r) { return value(r, i); }));  // in the order of ranks, to the bit
    float most = value(0, i);
    for (int r = 1; r < ranks; ++r) most = std::max(most, value(r, i));
    ASSERT_EQ(maxima[i], most);
  }
}

TEST_F(SoftgpuNccl, AllReduceOfOtherTypes) {
  const Array<double> doubles({0.1 * (rank + 1)}, stream_);
  const Array<int32_t> ints({-(1 << 30), rank}, stream_);
  const Array<int64_t> longs({int64_t{1} << 40, -rank}, stream_);
  const Array<uint16_t> bf16s({0x3f80, static_cast<uint16_t>(rank == 0 ? 0x4380 : 0x3f00)}, stream_);  // 1; 256 or 0.5
  NCCL(ncclAllReduce(doubles.data(), doubles.data(), 1, ncclFloat64, ncclSum, comm_, stream_));
  NCCL(ncclAllReduce(ints.data(), ints.data(), 2, ncclInt32, ncclMax, comm_, stream_));
  NCCL(ncclAllReduce(longs.data(), longs.data(), 2, ncclInt64, ncclSum, comm_, stream_));
  NCCL(ncclAllReduce(bf16s.data(), bf16s.data(), 2, ncclBfloat16, ncclSum, comm_, stream_));
  EXPECT_EQ(doubles.values()[0], sum<double>([](int r) { return 0.1 * (r + 1); }));
  EXPECT_EQ(ints.values(), (std::vector<int32_t>{-(1 << 30), ranks - 1}));
  EXPECT_EQ(longs.values(), (std::vector<int64_t>{ranks * (int64_t{1} << 40), -ranks * (ranks - 1) / 2}));
  const uint16_t count[] = {0, 0x3f80, 0x4000, 0x4040, 0x4080};  // 1, 2, 3, 4
  // 256 + 0.5 (ranks - 1), to 8 bits: the halves of 2 ranks are lost, 257 of 3 ranks too (a tie, to even).
  EXPECT_EQ(bf16s.values(), (std::vector<uint16_t>{count[ranks], 0x4380}));
}

TEST_F(SoftgpuNccl, ReduceScatterAndAllGather) {
  std::vector<float> blocks;
  for (int r = 0; r < ranks; ++r)
    for (int i = 0; i < 3; ++i) blocks.push_back(static_cast<float>(100 * rank + 10 * r + i));
  const Array<float> from(blocks, stream_), mine({-1, -1, -1}, stream_), all(blocks, stream_);
  NCCL(ncclReduceScatter(from.data(), mine.data(), 3, ncclFloat32, ncclSum, comm_, stream_));
  NCCL(ncclAllGather(mine.data(), all.data(), 3, ncclFloat32, comm_, stream_));
  const std::vector<float> got = all.values();
  for (int r = 0; r < ranks; ++r)
    for (int i = 0; i < 3; ++i)
      EXPECT_EQ(got[3 * r + i], sum<float>([&](int q) { return static_cast<float>(100 * q + 10 * r + i); }));
}

TEST_F(SoftgpuNccl, InPlace) {
  std::vector<int64_t> blocks(static_cast<size_t>(2 * ranks), 5 + rank);
  const Array<int64_t> all(blocks, stream_);
  NCCL(ncclReduceScatter(all.data(), all.data() + 2 * rank, 2, ncclInt64, ncclSum, comm_, stream_));
  NCCL(ncclAllGather(all.data() + 2 * rank, all.data(), 2, ncclInt64, comm_, stream_));
  EXPECT_EQ(all.values(), std::vector<int64_t>(blocks.size(), sum<int64_t>([](int r) { return 5 + r; })));
}

TEST_F(SoftgpuNccl, BroadcastSendReceive) {
  const int root = ranks - 1, next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
  const Array<int32_t> x({rank, rank + 1}, stream_), y({-1, -1}, stream_), empty({0}, stream_);
  NCCL(ncclBroadcast(x.data(), y.data(), 2, ncclInt32, root, comm_, stream_));
  EXPECT_EQ(y.values(), (std::vector<int32_t>{root, root + 1}));
  if (ranks == 1) return;
  NCCL(ncclGroupStart());
  NCCL(ncclSend(x.data(), 2, ncclInt32, next, comm_, stream_));
  NCCL(ncclRecv(y.data(), 2, ncclInt32, last, comm_, stream_));
  NCCL(ncclSend(x.data(), 0, ncclInt32, next, comm_, stream_));
  NCCL(ncclRecv(empty.data(), 0, ncclInt32, last, comm_, stream_));
  NCCL(ncclGroupEnd());
  EXPECT_EQ(y.values(), (std::vector<int32_t>{last, last + 1}));
}

// Ranks may wait for their streams in another order than the calls were made.
TEST_F(SoftgpuNccl, CallsRunInTheOrderInWhichTheyWereMade) {
  cudaStream_t other;
  CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  {
    const Array<int32_t> x({1}, stream_), y({10}, other);
    NCCL(ncclAllReduce(x.data(), x.data(), 1, ncclInt32, ncclSum, comm_, stream_));
    NCCL(ncclAllReduce(y.data(), y.data(), 1, ncclInt32, ncclSum, comm_, other));
    CUDA(cudaStreamSynchronize(rank == 0 ? other : stream_));
    CUDA(cudaStreamSynchronize(rank == 0 ? stream_ : other));
    EXPECT_EQ(x.values()[0], ranks);
    EXPECT_EQ(y.values()[0], 10 * ranks);
  }
  CUDA(cudaStreamDestroy(other));
}

TEST_F(SoftgpuNccl, FindsWorkThatIsNotOrdered) {
  cudaStream_t other;
  CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  {
    const Array<int32_t> x({1}, other);
    NCCL(ncclAllReduce(x.data(), x.data(), 1, ncclInt32, ncclSum, comm_, stream_));
    CUDA(cudaStreamSynchronize(other));
    CUDA(cudaStreamSynchronize(stream_));
  }
  EXPECT_NE(take_findings().find("stream_order in ncclAllReduce"), std::string::npos);
  CUDA(cudaStreamDestroy(other));
}

TEST_F(SoftgpuNccl, FindsRanksThatDisagree) {
  if (ranks == 1) return;
  const Array<int32_t> x({1, 2}, stream_);
  NCCL(ncclAllReduce(x.data(), x.data(), rank == 0 ? 2 : 1, ncclInt32, ncclSum, comm_, stream_));
  CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(async_error(), ncclInvalidUsage);
  EXPECT_NE(take_findings().find("the ranks' calls differ: rank 0 has ncclAllReduce of 2 elements"), std::string::npos);
}

TEST_F(SoftgpuNccl, FindsMessagesThatDoNotFit) {
  if (ranks == 1) return;
  const Array<int32_t> x({1, 2}, stream_);
  if (rank == 0) NCCL(ncclSend(x.data(), 2, ncclInt32, 1, comm_, stream_));
  if (rank == 1) NCCL(ncclRecv(x.data(), 1, ncclInt32, 0, comm_, stream_));
  CUDA(cudaStreamSynchronize(stream_));
  const std::string findings = take_findings();
  EXPECT_EQ(findings.find("8 bytes where 4 are due") != std::string::npos, rank == 1) << findings;
}

TEST_F(SoftgpuNccl, RefusesMemoryThatIsNotTheDevices) {
  std::vector<float> host(4);
  const Array<float> x({1}, stream_);
  EXPECT_EQ(ncclAllReduce(host.data(), x.data(), 1, ncclFloat32, ncclSum, comm_, stream_), ncclInvalidArgument);
  EXPECT_NE(take_findings().find("not in device memory"), std::string::npos);
  EXPECT_EQ(ncclAllReduce(x.data(), nullptr, 1, ncclFloat32, ncclSum, comm_, stream_), ncclInvalidArgument);
  EXPECT_EQ(ncclBroadcast(x.data(), x.data(), 1, ncclFloat32, ranks, comm_, stream_), ncclInvalidArgument);
  take_findings();
}

TEST_F(SoftgpuNccl, GroupsOfSomeRanks) {
  if (ranks < 3) return;
  ncclUniqueId id;
  if (rank == 2) NCCL(ncclGetUniqueId(&id));
  MPI_Bcast(&id, sizeof id, MPI_BYTE, 2, MPI_COMM_WORLD);
  if (rank == 1) return;
  ncclComm_t two;
  NCCL(ncclCommInitRank(&two, 2, id, rank == 2 ? 0 : 1));  // in another order than the world's
  const Array<int32_t> x({rank}, stream_), both({-1, -1}, stream_);
  NCCL(ncclAllGather(x.data(), both.data(), 1, ncclInt32, two, stream_));
  EXPECT_EQ(both.values(), (std::vector<int32_t>{2, 0}));
  NCCL(ncclCommDestroy(two));
}

TEST_F(SoftgpuNccl, FailsWhereItIsTold) {
  setenv("SOFTGPU_NCCL_FAIL", "1", 1);  // counted from the start of the process: long past
  const Array<int32_t> x({1}, stream_);
  NCCL(ncclAllReduce(x.data(), x.data(), 1, ncclInt32, ncclSum, comm_, stream_));
  EXPECT_EQ(x.values()[0], ranks);
  // The counter goes up by one a call, the wanted number by two: they meet.
  for (int wanted = 2; wanted < 1000 && async_error() == ncclSuccess; wanted += 2) {
    setenv("SOFTGPU_NCCL_FAIL", std::to_string(wanted).c_str(), 1);
    ncclAllReduce(x.data(), x.data(), 1, ncclInt32, ncclSum, comm_, stream_);
  }
  unsetenv("SOFTGPU_NCCL_FAIL");
  EXPECT_EQ(async_error(), ncclSystemError);
  EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 1, ncclInt32, ncclSum, comm_, stream_), ncclSystemError);
}

}  // namespace

int main(int argc, char** argv) {
  if (std::getenv("OMPI_COMM_WORLD_SIZE")) {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  }
  testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  if (std::getenv("OMPI_COMM_WORLD_SIZE")) MPI_Finalize();
  return result;
}

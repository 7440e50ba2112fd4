#include "runtime/gpu.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <map>
#include <optional>
#include <thread>

#include "runtime/log.h"
#include "runtime/nccl.h"
#include "runtime/watchdog.h"

namespace notellm::gpu {
namespace {

constexpr int minimum_major = 8;  // sm_80: bf16 tensor cores, cp.async

cudaStream_t native(void* stream) { return static_cast<cudaStream_t>(stream); }

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

// What a destructor may do with an error.
void log_failure(cudaError_t status, const char* what) {
  if (status != cudaSuccess) spdlog::error("{}: {}", what, cudaGetErrorString(status));
}

// The device memory that is alive, for the message when there is no room for more.
struct Block {
  const char* what;
  int64_t bytes;
};
std::map<void*, Block>& blocks() {
  static std::map<void*, Block> alive;
  return alive;
}

// "gradients 12 MiB, parameters 24 MiB".
std::string holders() {
  std::map<std::string, int64_t> totals;
  for (const auto& [data, block] : blocks()) totals[block.what] += block.bytes;
  std::string text;
  for (const auto& [what, bytes] : totals)
    text += fmt::format("{}{} {} MiB", text.empty() ? "" : ", ", what, bytes >> 20);
  return text.empty() ? "nothing of this process" : text;
}

// Waits for what `query` asks after. Asks again and again instead of blocking in the driver, so that a collective whose
// other ranks have failed is noticed, and the watchdog knows what is waited for. In the beginning at once, since most
// waits are short; later rarely, since the cores are wanted by others.
template <class Query>
void wait_for(const Query& query, const char* what) {
  std::optional<WatchedCollective> watched;
  if (const LastCollective last = last_collective(); last.name) watched.emplace(last.name, last.group);
  for (int asked = 0;; ++asked) {
    const cudaError_t status = query();
    check_collectives();
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) check(status, what);
    cudaGetLastError();  // not ready is no error that a launch should find
    if (asked < 100)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(20 * (asked / 100), 500)));
  }
}

// 0 where there is no driver.
int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace

void check(int status, const char* what) {
  if (status == cudaSuccess) return;
  const auto error = static_cast<cudaError_t>(status);
  fail(ErrorKind::device, "{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

void choose_device(int local_rank, int local_size) {
  const int driver = driver_version();
  if (driver == 0)
    fail(ErrorKind::device,
         "device: cuda, but this machine has no NVIDIA driver: install one, run on a machine with a GPU, or set "
         "device: cpu");
  if (driver / 1000 < CUDART_VERSION / 1000)
    fail(ErrorKind::device,
         "the NVIDIA driver supports CUDA {}, this notellm was built with CUDA {}: update the driver, or build with "
         "an older toolkit",
         version_text(driver), version_text(CUDART_VERSION));
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (local_size > count)
    fail(ErrorKind::device,
         "{} ranks on this host, but {} GPUs: start one rank a GPU (mpirun -n {}, or more hosts), or look at "
         "CUDA_VISIBLE_DEVICES",
         local_size, count, count);
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, local_rank), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, local_rank), "cudaDeviceGetAttribute");
  if (major < minimum_major)
    fail(ErrorKind::device, "GPU {} is sm_{}{}; notellm needs sm_80 or newer (A100, RTX 30 and later)", local_rank,
         major, minor);
  check(cudaSetDevice(local_rank), "cudaSetDevice");
}

DeviceInfo device_info() {
  DeviceInfo info;
  cudaDeviceProp properties;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<int64_t>(total);
  info.free_bytes = static_cast<int64_t>(free);
  return info;
}

void* allocate(int64_t bytes, Memory memory, const char* what) {
  void* data = nullptr;
  if (memory == Memory::pinned) {
    check(cudaMallocHost(&data, static_cast<size_t>(bytes)), "cudaMallocHost");
    return data;
  }
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is reported here, and is no reason for the next launch to fail
    const DeviceInfo info = device_info();
    fail(ErrorKind::device,
         "the GPU has no room for {} of {} MiB: {} of its {} MiB are free; this process holds {}; lower "
         "train.micro_batch_pairs (activations) or evaluate.batch_notes (embedding), or the model's sizes",
         what, bytes >> 20, info.free_bytes >> 20, info.memory_bytes >> 20, holders());
  }
  check(status, "cudaMalloc");
  blocks().emplace(data, Block{what, bytes});
  return data;
}

void release(void* data, Memory memory) noexcept {
  if (memory == Memory::pinned) return log_failure(cudaFreeHost(data), "cudaFreeHost");
  blocks().erase(data);
  log_failure(cudaFree(data), "cudaFree");
}

void copy(Stream& stream, const void* from, void* to, int64_t bytes) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, native(stream.native())),
        "cudaMemcpyAsync");
}

void set_zero(Stream& stream, void* data, int64_t bytes) {
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), native(stream.native())), "cudaMemsetAsync");
}

void* create_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}

void destroy_stream(void* stream) noexcept { log_failure(cudaStreamDestroy(native(stream)), "cudaStreamDestroy"); }

void synchronize_stream(void* stream) {
  wait_for([&] { return cudaStreamQuery(native(stream)); }, "waiting for the GPU");
}

void* create_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return event;
}

void destroy_event(void* event) noexcept {
  log_failure(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "cudaEventDestroy");
}

void record(void* event, Stream& stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), native(stream.native())), "cudaEventRecord");
}

void wait(void* event, Stream& stream) {
  check(cudaStreamWaitEvent(native(stream.native()), static_cast<cudaEvent_t>(event), 0), "cudaStreamWaitEvent");
}

void synchronize_event(void* event) {
  wait_for([&] { return cudaEventQuery(static_cast<cudaEvent_t>(event)); }, "waiting for the GPU");
}

}  // namespace notellm::gpu

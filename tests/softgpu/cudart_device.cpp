// Device queries, errors, versions.
#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "tests/softgpu/at_end.h"
#include "tests/softgpu/cudart.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

constexpr size_t pretended_memory = 80ull << 30;

int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}
int driver() {
  static const int version = from_environment("SOFTGPU_DRIVER", CUDART_VERSION);
  return version;
}
int devices() {
  static const int count = from_environment("SOFTGPU_DEVICES", 8);
  return count;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

struct FailedLaunch {
  std::mutex mutex;
  std::string kernel, error;  // empty: none
};
FailedLaunch& failed_launch() {
  static FailedLaunch& launch = *new FailedLaunch;
  return launch;
}
void launch_was_checked() {
  FailedLaunch& launch = failed_launch();
  const std::lock_guard lock(launch.mutex);
  launch.kernel.clear();
}

// An illegal access stays: every call returns it until the device is reset.
cudaError_t current_error() { return context_lost() ? cudaErrorIllegalAddress : last_error; }

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
constexpr ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidPtx, "cudaErrorInvalidPtx", "a PTX JIT compilation failed"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};
const ErrorText* find_error(cudaError_t error) {
  for (const ErrorText& known : error_texts)
    if (known.error == error) return &known;
  return nullptr;
}

__attribute__((constructor)) void register_checks() { end_checks().push_back(look_for_unchecked_launch); }

}  // namespace

const DeviceModel& device_model() {
  static const DeviceModel model = [] {
    const int arch = from_environment("SOFTGPU_ARCH", 80);
    if (arch >= 90) return DeviceModel{arch, 132, 228 << 10, 227 << 10, 32, 2048, 50 << 20};
    if (arch >= 80) return DeviceModel{arch, 108, 164 << 10, 163 << 10, 32, 2048, 40 << 20};
    return DeviceModel{arch, 40, 64 << 10, 64 << 10, 16, 1024, 4 << 20};
  }();
  return model;
}

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess && status != cudaErrorNotReady) last_error = status;
  return status;
}

cudaError_t ready() {
  if (driver() < CUDART_VERSION) return cudaErrorInsufficientDriver;
  if (devices() == 0) return cudaErrorNoDevice;
  return context_lost() ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t refuse(const char* call, const std::string& why, cudaError_t status) {
  Place place;
  place.kernel = call;
  report(FindingKind::invalid_call, place, why);
  return result(status);
}

void launch_failed(const std::string& kernel, cudaError_t status) {
  FailedLaunch& launch = failed_launch();
  const std::lock_guard lock(launch.mutex);
  launch.kernel = kernel;
  launch.error = cudaGetErrorString(status);
}

void look_for_unchecked_launch() {
  FailedLaunch& launch = failed_launch();
  const std::lock_guard lock(launch.mutex);
  if (launch.kernel.empty()) return;
  Place place;
  place.kernel = launch.kernel;
  report(FindingKind::unchecked_launch, place,
         "its launch failed (" + launch.error + ") and nobody asked for the error (cudaGetLastError)");
  launch.kernel.clear();
}

std::string readable(const std::string& mangled) {
  int status = 0;
  char* plain = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : mangled;
  std::free(plain);
  for (const char* anonymous : {"(anonymous namespace)::", "void "})
    for (size_t at; (at = name.find(anonymous)) != std::string::npos;) name.erase(at, std::strlen(anonymous));
  return name.substr(0, name.find('('));
}

}  // namespace softgpu

using namespace softgpu;

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = current_error();
  last_error = cudaSuccess;
  launch_was_checked();
  return error;
}

cudaError_t cudaPeekAtLastError() {
  launch_was_checked();
  return current_error();
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* known = find_error(error);
  return known ? known->text : "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* known = find_error(error);
  return known ? known->name : "unrecognized error code";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver();
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (const cudaError_t error = ready()) return result(error);
  *count = devices();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = ready()) return result(error);
  if (device < 0 || device >= devices()) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  if (const cudaError_t error = ready()) return result(error);
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (const cudaError_t error = ready()) return result(error);
  if (std::min(device, peer) < 0 || std::max(device, peer) >= devices()) return result(cudaErrorInvalidDevice);
  *can = device != peer;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (const cudaError_t error = ready()) return result(error);
  if (device < 0 || device >= devices()) return result(cudaErrorInvalidDevice);
  const DeviceModel& model = device_model();
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "softgpu sm_%d", model.arch);
  properties->totalGlobalMem = pretended_memory;
  properties->sharedMemPerBlock = shared_without_asking;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->totalConstMem = 64 << 10;
  properties->major = model.arch / 10;
  properties->minor = model.arch % 10;
  properties->multiProcessorCount = model.multiprocessors;
  properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory = 1;
  properties->asyncEngineCount = 3;
  properties->l2CacheSize = model.l2_bytes;
  properties->maxThreadsPerMultiProcessor = model.threads_per_multiprocessor;
  properties->maxBlocksPerMultiProcessor = model.blocks_per_multiprocessor;
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(model.shared_per_multiprocessor);
  properties->sharedMemPerBlockOptin = static_cast<size_t>(model.shared_per_block);
  properties->reservedSharedMemPerBlock = shared_reserved_per_block;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = properties.maxThreadsPerBlock, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = shared_without_asking, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = device_model().shared_per_block, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = device_model().shared_per_multiprocessor, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = properties.warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = properties.multiProcessorCount, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = properties.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = properties.minor, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = properties.maxThreadsPerMultiProcessor, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = properties.l2CacheSize, cudaSuccess;
    default:
      return refuse("cudaDeviceGetAttribute", "softgpu does not know attribute " + std::to_string(attribute),
                    cudaErrorInvalidValue);
  }
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (const cudaError_t error = ready()) return result(error);
  *total = memory_size();
  *free = memory_size() - bytes_in_use();
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return result(error);
  synchronize_all();
  return result(ready());
}

// Streams, events and memory are gone; variables of kernels keep their values, unlike on a GPU.
cudaError_t cudaDeviceReset() {
  look_for_unchecked_launch();
  if (!context_lost()) run_all();
  reset_context();
  last_error = cudaSuccess;
  const auto allocations = live_allocations();
  for (const Allocation& allocation : *allocations)
    if (allocation.what == "cudaMalloc") release(allocation.begin);
  release_all_pinned();
  return result(ready());
}

}  // extern "C"

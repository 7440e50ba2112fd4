// Modules, kernels and their launches, as nvcc's host code asks for them.
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "tests/softgpu/cudart.h"
#include "tests/softgpu/engine.h"
#include "tests/softgpu/fatbin.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

// A registered fat binary. Its PTX is decoded when the first of its kernels is used.
struct Binary {
  const void* wrapper;
  bool loaded = false;
  cudaError_t error = cudaSuccess;
  std::vector<std::shared_ptr<Module>> modules;
};
struct Function {  // what stands behind cudaKernel_t
  Binary* binary;
  std::string name;  // mangled
  std::string plain_name;
  bool found = false;
  const Module* module = nullptr;
  const Kernel* kernel = nullptr;
  uint32_t dynamic_shared_limit = 0;  // 0: the usual one
};
struct Variable {
  Binary* binary;
  std::string name;
};
struct Registry {
  std::recursive_mutex mutex;
  std::deque<Binary> binaries;
  std::unordered_map<const void*, Function> functions;  // by the address of the host's stub
  std::unordered_map<const void*, Variable> variables;  // by the address of the host's shadow
};
Registry& registry() {
  static Registry& all = *new Registry;
  return all;
}
using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t load(Binary& binary) {
  if (binary.loaded) return binary.error;
  binary.loaded = true;
  try {
    for (const std::string& ptx : ptx_of(binary.wrapper, device_model().arch))
      binary.modules.push_back(load_module(ptx));
    if (binary.modules.empty()) binary.error = cudaErrorNoKernelImageForDevice;
  } catch (const std::exception& error) {
    Place place;
    place.kernel = "loading of PTX";
    report(FindingKind::unsupported, place, error.what());
    binary.error = cudaErrorInvalidPtx;
  }
  return binary.error;
}

// The kernel of a stub, its module loaded.
cudaError_t find(Function& function) {
  if (function.found) return cudaSuccess;
  if (const cudaError_t error = load(*function.binary)) return error;
  for (const auto& module : function.binary->modules)
    if (const Kernel* kernel = find_kernel(*module, function.name); kernel && !function.kernel) {
      function.module = module.get();
      function.kernel = kernel;
      function.found = true;
    }
  return function.found ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

// Handles are stubs' addresses or, from __cudaGetKernel, addresses of Functions.
Function* find_function(const void* handle) {
  auto& functions = registry().functions;
  if (const auto found = functions.find(handle); found != functions.end()) return &found->second;
  for (auto& [stub, function] : functions)
    if (&function == handle) return &function;
  return nullptr;
}

uint32_t dynamic_shared_limit(const Function& function) {
  return function.dynamic_shared_limit > 0
             ? function.dynamic_shared_limit
             : shared_without_asking - std::min<uint32_t>(function.kernel->shared_bytes, shared_without_asking);
}

cudaError_t check_launch(const Function& function, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (threads > function.kernel->max_threads) return cudaErrorLaunchOutOfResources;
  if (shared_bytes > dynamic_shared_limit(function)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

cudaError_t launch(Function* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return error;
  if (!function) return cudaErrorInvalidDeviceFunction;
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  auto work = std::make_shared<Launch>();
  {
    const Lock lock(registry().mutex);
    if (const cudaError_t error = find(*function)) return error;
    if (const cudaError_t error = check_launch(*function, grid, block, shared_bytes)) return error;
    work->module = function->module;
    work->kernel = function->kernel;
  }
  work->grid = {grid.x, grid.y, grid.z};
  work->block = {block.x, block.y, block.z};
  work->dynamic_shared_bytes = static_cast<uint32_t>(shared_bytes);
  work->parameters.resize(work->kernel->parameter_bytes);
  for (size_t i = 0; i < work->kernel->parameters.size(); ++i) {
    const Parameter& parameter = work->kernel->parameters[i];
    std::memcpy(work->parameters.data() + parameter.offset, arguments[i], parameter.bytes);
  }
  enqueue(stream, ("kernel " + function->plain_name).c_str(), [work](WorkId id) {
    work->work = id;
    if (!run(*work)) lose_context();
  });
  return cudaSuccess;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};
thread_local std::vector<Configuration> configurations;  // of <<<>>>, until the stub takes it

}  // namespace

uint64_t symbol_address(const void* host_variable, size_t& bytes) {
  Registry& all = registry();
  const Lock lock(all.mutex);
  const auto found = all.variables.find(host_variable);
  if (found == all.variables.end() || load(*found->second.binary) != cudaSuccess) return 0;
  for (const auto& module : found->second.binary->modules)
    if (const uint64_t address = find_variable(*module, found->second.name, bytes)) return address;
  return 0;
}

}  // namespace softgpu

using namespace softgpu;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  Registry& all = registry();
  const Lock lock(all.mutex);
  all.binaries.push_back({.wrapper = wrapper, .modules = {}});
  return reinterpret_cast<void**>(&all.binaries.back());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}  // the process ends
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** binary, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const Lock lock(registry().mutex);
  registry().functions[stub] = {
      .binary = reinterpret_cast<Binary*>(binary), .name = name, .plain_name = readable(name)};
}

void __cudaRegisterVar(void** binary, char* shadow, char*, const char* name, int, size_t, int, int) {
  const Lock lock(registry().mutex);
  registry().variables[shadow] = {reinterpret_cast<Binary*>(binary), name};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  if (configurations.empty()) return result(cudaErrorInvalidConfiguration);
  const Configuration& last = configurations.back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *static_cast<void**>(stream) = last.stream;
  configurations.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  const Lock lock(registry().mutex);
  *kernel = reinterpret_cast<cudaKernel_t>(find_function(stub));
  return *kernel ? cudaSuccess : result(cudaErrorInvalidDeviceFunction);
}

// Behind <<<>>>, which drops what this returns.
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t stream) {
  auto* function = reinterpret_cast<Function*>(kernel);
  const cudaError_t status = launch(function, grid, block, arguments, shared_bytes, stream);
  if (status != cudaSuccess) launch_failed(function ? function->plain_name : "an unknown kernel", status);
  return result(status);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  Function* function = nullptr;
  {
    const Lock lock(registry().mutex);
    function = find_function(stub);
  }
  return result(launch(function, grid, block, arguments, shared_bytes, stream));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  if (config->numAttrs != 0)
    return refuse("cudaLaunchKernelExC", "softgpu does not know launch attributes", cudaErrorNotSupported);
  return cudaLaunchKernel(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream);
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t error = ready()) return result(error);
  const Lock lock(registry().mutex);
  Function* function = find_function(stub);
  if (!function) return result(cudaErrorInvalidDeviceFunction);
  if (const cudaError_t error = find(*function)) return result(error);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;  // a wish
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0) return result(cudaErrorInvalidValue);
  if (static_cast<uint32_t>(value) + function->kernel->shared_bytes >
      static_cast<uint32_t>(device_model().shared_per_block))
    return result(cudaErrorInvalidValue);
  function->dynamic_shared_limit = static_cast<uint32_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  if (const cudaError_t error = ready()) return result(error);
  const Lock lock(registry().mutex);
  Function* function = find_function(stub);
  if (!function) return result(cudaErrorInvalidDeviceFunction);
  if (const cudaError_t error = find(*function)) return result(error);
  *attributes = {};
  attributes->sharedSizeBytes = function->kernel->shared_bytes;
  attributes->maxThreadsPerBlock = static_cast<int>(function->kernel->max_threads);
  attributes->numRegs = static_cast<int>(function->kernel->registers);
  attributes->ptxVersion = attributes->binaryVersion = device_model().arch;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(dynamic_shared_limit(*function));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub, int block_size,
                                                                   size_t dynamic_shared_bytes, unsigned) {
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, stub)) return error;
  if (block_size <= 0) return result(cudaErrorInvalidValue);
  const DeviceModel& model = device_model();
  const int warps = (block_size + 31) / 32;
  const int registers = std::max(attributes.numRegs, 16) * warps * 32;
  const auto shared = static_cast<int>(attributes.sharedSizeBytes + dynamic_shared_bytes) + shared_reserved_per_block;
  *blocks = std::min({model.blocks_per_multiprocessor, model.threads_per_multiprocessor / (warps * 32),
                      65536 / registers, model.shared_per_multiprocessor / shared});
  if (block_size > attributes.maxThreadsPerBlock) *blocks = 0;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub, int block_size,
                                                          size_t dynamic_shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, block_size, dynamic_shared_bytes, 0);
}

}  // extern "C"

#include "launch/gpu_facts.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn_version.h>
#include <fmt/format.h>

#include "launch/table.h"
#include "runtime/nccl.h"

// Its headers are many; of the library only the version is wanted as yet.
extern "C" size_t cudnnGetVersion(void);

namespace notellm {
namespace {

std::string cuda_version(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

// A version with three parts of this many decimal digits below the first.
std::string version_text(size_t version, size_t major_unit, size_t minor_unit) {
  return fmt::format("{}.{}.{}", version / major_unit, version % major_unit / minor_unit, version % minor_unit);
}

std::string describe_gpu(int gpu) {
  cudaDeviceProp properties;
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, gpu); status != cudaSuccess)
    return cudaGetErrorString(status);
  return fmt::format("{}, sm_{}{}, {} multiprocessors, {}", properties.name, properties.major, properties.minor,
                     properties.multiProcessorCount, format_bytes(static_cast<double>(properties.totalGlobalMem)));
}

// "0 – 1" of each pair of GPUs that cannot read each other's memory.
std::string pairs_without_peer_access(int count) {
  std::string pairs;
  for (int a = 0; a < count; ++a)
    for (int b = a + 1; b < count; ++b) {
      int can = 0;
      if (cudaDeviceCanAccessPeer(&can, a, b) != cudaSuccess || !can)
        pairs += fmt::format("{}{} – {}", pairs.empty() ? "" : ", ", a, b);
    }
  return pairs;
}

}  // namespace

GpuFacts gpu_facts() {
  GpuFacts facts;
  const auto row = [&](std::string name, std::string value) {
    facts.rows.emplace_back(std::move(name), std::move(value));
  };
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  row("CUDA", fmt::format("built with {}; driver: {}", cuda_version(CUDART_VERSION),
                          driver == 0 ? "none" : cuda_version(driver)));
  row("NCCL", gpu::nccl_version());
  row("cuBLASLt", version_text(cublasLtGetVersion(), 10000, 100));
  row("cuDNN", version_text(cudnnGetVersion(), 10000, 100));
  if (driver == 0) return facts;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    row("GPUs", cudaGetErrorString(status));
    return facts;
  }
  for (int gpu = 0; gpu < count; ++gpu) row(fmt::format("GPU {}", gpu), describe_gpu(gpu));
  if (const std::string pairs = pairs_without_peer_access(count); !pairs.empty())
    facts.warnings.push_back(
        fmt::format("GPUs without access to each other's memory: {}; collectives go through the host", pairs));
  return facts;
}

}  // namespace notellm

#include "launch/device_facts.h"

#include <fstream>

#include "runtime/gpu.h"

namespace notellm {
namespace {

// By NVIDIA's architecture papers ("A100 Tensor Core GPU Architecture", "H100 Tensor Core GPU Architecture") and data
// sheets of A100, H100 and H200; where a sheet gives bf16 "with sparsity", half of it. A multiprocessor does 2,048
// FLOP of bf16 a cycle on sm_80 and 4,096 on sm_90, so that these are the figures at 1,410 MHz (A100), 1,830 (H100 SXM,
// H200) and 1,620 (H100 PCIe). The clock that CUDA reports is no base for them: it is a GPU's highest, 1,980 of an H100
// SXM, with which the f32 figure is made and those of the tensor cores are not.
struct Gpu {
  std::string_view name;  // as CUDA gives it, from its beginning
  bool whole_name;        // "NVIDIA H100 NVL" is another device than "NVIDIA H100 …", with another clock
  int multiprocessors;    // a part of a GPU has fewer, and the same name
  double bf16, f32;
};
constexpr Gpu gpus[] = {
    {"NVIDIA A100", false, 108, 312e12, 19.5e12},
    {"NVIDIA H100 80GB HBM3", true, 132, 989.4e12, 66.9e12},  // SXM
    {"NVIDIA H100 PCIe", true, 114, 756e12, 51.2e12},
    {"NVIDIA H200", true, 132, 989.4e12, 66.9e12},  // SXM
};

}  // namespace

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string device_name(Device device) {
  if constexpr (cuda_built)
    if (device == Device::cuda) return gpu::device_info().name;
  return cpu_name();
}

std::optional<double> vendor_peak(std::string_view gpu, int multiprocessors, DType dtype) {
  for (const Gpu& known : gpus)
    if ((known.whole_name ? gpu == known.name : gpu.starts_with(known.name)) &&
        multiprocessors == known.multiprocessors)
      return dtype == DType::bf16 ? known.bf16 : known.f32;
  return {};
}

std::optional<double> device_peak(Device device, DType dtype) {
  if constexpr (cuda_built)
    if (device == Device::cuda) {
      const gpu::DeviceInfo info = gpu::device_info();
      return vendor_peak(info.name, info.multiprocessors, dtype);
    }
  return {};
}

}  // namespace notellm

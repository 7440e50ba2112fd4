#include <gtest/gtest.h>

#include <filesystem>

#include "launch/device_facts.h"
#include "training/cluster.h"

namespace notellm {
namespace {

constexpr auto f32 = DType::f32, bf16_type = DType::bf16;

// Multiprocessors · FLOP a cycle of each · the clock (MHz) that the vendor counts with: tensor cores' for bf16.
void expect_peak(const char* gpu, int multiprocessors, DType dtype, double flop_a_cycle, double megahertz) {
  const std::optional<double> peak = vendor_peak(gpu, multiprocessors, dtype);
  ASSERT_TRUE(peak) << gpu;
  EXPECT_NEAR(*peak / (multiprocessors * flop_a_cycle * megahertz * 1e6), 1, 1e-3) << gpu;
}

TEST(VendorPeak, IsWhatTheMultiprocessorsDoAtTheVendorsClock) {
  for (const char* a100 : {"NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"}) {
    expect_peak(a100, 108, bf16_type, 2048, 1410);
    expect_peak(a100, 108, f32, 128, 1410);
  }
  for (const char* hopper : {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}) {
    expect_peak(hopper, 132, bf16_type, 4096, 1830);
    expect_peak(hopper, 132, f32, 256, 1980);
  }
  expect_peak("NVIDIA H100 PCIe", 114, bf16_type, 4096, 1620);
  expect_peak("NVIDIA H100 PCIe", 114, f32, 256, 1755);
}

TEST(VendorPeak, IsUnknownOfOtherDevicesAndOfParts) {
  EXPECT_FALSE(vendor_peak("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 42, bf16_type));
  EXPECT_FALSE(vendor_peak("NVIDIA H100 NVL", 132, bf16_type));
  EXPECT_FALSE(vendor_peak("NVIDIA H200 NVL", 132, bf16_type));
  EXPECT_FALSE(vendor_peak("NVIDIA A10", 72, bf16_type));
  EXPECT_FALSE(vendor_peak("softgpu sm_80", 108, bf16_type));
  EXPECT_FALSE(device_peak(Device::cpu, f32));
}

TEST(VendorPeak, IsWhatTheClusterFilesSay) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(NOTELLM_SOURCE_DIR "/configs/clusters")) {
    const GpuConfig gpu = read_cluster(entry.path()).gpu;
    const int multiprocessors = gpu.name.starts_with("NVIDIA A100") ? 108 : 132;
    for (const auto& [dtype, tflops] : {std::pair{bf16_type, gpu.bf16_tflops}, std::pair{f32, gpu.fp32_tflops}}) {
      const std::optional<double> peak = vendor_peak(gpu.name, multiprocessors, dtype);
      ASSERT_TRUE(peak) << entry.path() << ": " << gpu.name;
      EXPECT_DOUBLE_EQ(1e12 * tflops, *peak) << entry.path();
    }
    ++files;
  }
  EXPECT_GE(files, 2);
}

TEST(CpuName, IsSomething) { EXPECT_FALSE(device_name(Device::cpu).empty()); }

}  // namespace
}  // namespace notellm

// What this rank's device is called, and what its vendor says that it can do.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "runtime/device.h"
#include "runtime/dtype.h"

namespace notellm {

std::string cpu_name();                  // "unknown" where /proc/cpuinfo has none
std::string device_name(Device device);  // the CPU's, or that of the GPU that choose_device chose

// FLOP/s of dense products of f32 (no TF32) or bf16 by the vendor's data sheet. Nothing where none is known here: of
// CPUs, of other GPUs, of parts of a GPU (MIG).
std::optional<double> vendor_peak(std::string_view gpu, int multiprocessors, DType dtype);
std::optional<double> device_peak(Device device, DType dtype);  // this rank's

}  // namespace notellm

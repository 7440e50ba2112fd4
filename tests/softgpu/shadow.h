// The shadow of device memory, as the interpreter reads and writes it: who wrote and who read each 2 bytes last.
#pragma once

#include "tests/softgpu/warp.h"

namespace softgpu {

std::string describe(const Allocation& allocation);  // "4096 bytes of cudaMalloc"

namespace shadow {
// Set when the first memory is asked for.
inline Toucher* written = nullptr;
inline Toucher* read = nullptr;
inline uint64_t base = 0;               // of the device's addresses
inline std::ptrdiff_t host_offset = 0;  // from a device address to the same byte for softgpu
inline size_t index(uint64_t address) { return (address - base) / 2; }
}  // namespace shadow

}  // namespace softgpu

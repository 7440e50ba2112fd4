// The shadow of device memory, as the interpreter reads and writes it: who wrote and who read each 2 bytes last.
#pragma once

#include <atomic>

#include "tests/softgpu/warp.h"

namespace softgpu {

std::string describe(const Allocation& allocation);  // "4096 bytes of cudaMalloc"

namespace shadow {
// Set when the first memory is asked for.
inline Toucher* written = nullptr;
inline Toucher* read = nullptr;
// A reader that a later one, of another work and not ordered after it, has taken the place of in `read`: a write must
// be ordered after both. Of three such readers one is forgotten.
inline Toucher* other_reader = nullptr;
inline std::atomic<bool> any_other_reader = false;  // whether there has ever been one
inline uint64_t base = 0;                           // of the device's addresses
inline std::ptrdiff_t host_offset = 0;              // from a device address to the same byte for softgpu
inline size_t index(uint64_t address) { return (address - base) / 2; }
inline void keep_reader(const Toucher* read_entry) {
  other_reader[read_entry - read] = *read_entry;
  any_other_reader.store(true, std::memory_order_relaxed);
}
}  // namespace shadow

}  // namespace softgpu

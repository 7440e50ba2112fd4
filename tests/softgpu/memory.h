// Device memory: allocations, and a shadow that knows who wrote and read each 2 bytes last.
//
// A device address is a real address of this process that the host cannot touch (PROT_NONE): host code that
// dereferences one ends with a segmentation fault, as with a GPU. The same bytes are mapped a second time for softgpu;
// host_view() gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/softgpu/findings.h"

namespace softgpu {

struct Allocation {
  uint64_t begin = 0, end = 0;  // as asked for, not rounded
  std::string what;             // "cudaMalloc", or a variable's name
};

// Thread-safe. 0: more than SOFTGPU_MEMORY_MB (default 8192) would be in use. 256-byte aligned, with a gap behind, and
// never written as far as the shadow knows. An address is not given out again before the space has been used up.
uint64_t allocate(size_t bytes, std::string what);
bool release(uint64_t address);  // false: no allocation begins there
size_t bytes_in_use();
size_t memory_size();
using Allocations = std::vector<Allocation>;            // by address
std::shared_ptr<const Allocations> live_allocations();  // as they are now
bool is_device_address(uint64_t address);               // inside the reserved range, allocated or not
// The allocation that holds this byte; false: none.
bool find_allocation(uint64_t address, Allocation& found);
std::byte* host_view(uint64_t device_address);

// One piece of work in a stream's order (a kernel, a copy, a library call): its number, from 1. See streams.h.
using WorkId = uint32_t;
constexpr int work_bits = 20;  // of the shadow's entries

// A library call's or copy's access to a range: checks bounds, order against earlier work, for reads that all of it was
// written; and records it. False when out of bounds (reported; leave the memory alone).
bool access_read(uint64_t address, size_t bytes, WorkId work, const Place& place);
bool access_write(uint64_t address, size_t bytes, WorkId work, const Place& place);
// Takes the range for written by the host before all work: a variable's initial value.
void mark_written(uint64_t address, size_t bytes);
// What was never written at `from` is taken for never written at `to`: a copy within the device.
bool access_copy(uint64_t from, uint64_t to, size_t bytes, WorkId work, const Place& place);

}  // namespace softgpu

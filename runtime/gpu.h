// The GPU of this process: what the rest of the runtime needs of CUDA. Only in builds with CUDA.
//
// Everything throws Error(device) with CUDA's own text and what to do.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/memory.h"

namespace notellm::gpu {

// Throws unless `status` (a cudaError_t) is cudaSuccess; `what` names the call or kernel.
void check(int status, const char* what);
// After every kernel launch: throws when it was refused (cudaGetLastError), naming the kernel.
void check_launch(const char* kernel);

// Behind choose_device (runtime/device.h).
void choose_device(int local_rank, int local_size);

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0, free_bytes = 0;
};
DeviceInfo device_info();

// Behind Buffer, copy and set_zero (runtime/memory.h). `what` names device memory in the message of an allocation that
// fails: everything alive is listed by it.
void* allocate(int64_t bytes, Memory memory, const char* what);
void release(void* data, Memory memory) noexcept;
void copy(Stream& stream, const void* from, void* to, int64_t bytes);
void set_zero(Stream& stream, void* data, int64_t bytes);

// Behind Stream and Event.
void* create_stream();
void destroy_stream(void* native) noexcept;
void synchronize_stream(void* native);
void* create_event();
void destroy_event(void* native) noexcept;
void record(void* event, Stream& stream);
void wait(void* event, Stream& stream);
void synchronize_event(void* event);

}  // namespace notellm::gpu

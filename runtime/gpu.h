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

// Makes one of this host's GPUs the process's own: the one at place `local_rank` of `local_size` ranks. Once, before
// any stream or memory. Throws: no driver; a driver older than this build's CUDA; fewer GPUs than ranks; a GPU below
// sm_80.
void choose_device(int local_rank, int local_size);

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0, free_bytes = 0;
};
DeviceInfo device_info();

// Behind Buffer, copy and set_zero (runtime/memory.h).
void* allocate(int64_t bytes, Memory memory);
void release(void* data, Memory memory) noexcept;
void copy(Stream& stream, const void* from, void* to, int64_t bytes);
void set_zero(Stream& stream, void* data, int64_t bytes);

// Behind Stream.
void* create_stream();
void destroy_stream(void* native) noexcept;
void synchronize(void* native);

// A point in a stream's order that another stream, or the host, can wait for. Move-only.
class Event {
 public:
  Event();
  Event(Event&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(native_, other.native_);
    return *this;
  }
  ~Event();
  void record(Stream& stream);
  void wait(Stream& stream) const;  // what is enqueued from now on runs after the event
  void synchronize() const;

 private:
  void* native_ = nullptr;
};

}  // namespace notellm::gpu

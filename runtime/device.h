// Where work runs and in what order.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "runtime/error.h"

namespace notellm {

enum class Device : uint8_t { cpu, cuda };

// Whether this build has CUDA code: `if constexpr (cuda_built)` keeps everything behind it out of a build without.
#ifdef NOTELLM_CUDA
inline constexpr bool cuda_built = true;
#else
inline constexpr bool cuda_built = false;
#endif

// Makes a GPU of this host the process's own: the one at place `local_rank` of the host's `local_size` ranks. Once,
// before any stream or memory; nothing for the CPU. Throws Error(device): CUDA not built; no driver, one older than
// this build's CUDA; fewer GPUs than ranks; a GPU below sm_80.
void choose_device(Device device, int local_rank, int local_size);

// An ordered queue of work on one device. Every op takes its stream explicitly. On the CPU an op has finished when it
// returns, so that a CPU stream only names the device. On CUDA an op is enqueued and returns; what it reads and writes
// is device memory of the process's GPU (runtime/gpu.h). Move-only.
class Stream {
 public:
  // Throws Error(device): CUDA not built, no usable GPU.
  explicit Stream(Device device = Device::cpu);
  Stream(Stream&& other) noexcept { swap(other); }
  Stream& operator=(Stream&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Stream();

  Device device() const { return device_; }
  bool on_gpu() const { return device_ == Device::cuda; }
  void* native() const { return native_; }  // the cudaStream_t
  // Waits until everything enqueued has finished. Throws Error(device) when any of it failed, Error(peer) when a
  // collective did. The watchdog (runtime/communicator.h) sees a collective that does not end.
  void synchronize();

  // What a library keeps for its work on this stream (kernels/gemm_cuda.cpp: handle, workspace, chosen algorithms).
  std::shared_ptr<void>& library() { return library_; }

 private:
  void swap(Stream& other) {
    std::swap(device_, other.device_);
    std::swap(native_, other.native_);
    std::swap(library_, other.library_);
  }
  Device device_ = Device::cpu;
  void* native_ = nullptr;
  std::shared_ptr<void> library_;
};

// A point in a stream's order that another stream, or the host, can wait for. On the CPU there is nothing to wait for.
// Move-only.
class Event {
 public:
  explicit Event(Device device = Device::cpu);
  Event(Event&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(native_, other.native_);
    return *this;
  }
  ~Event();

  void record(Stream& stream);
  void wait(Stream& stream) const;  // what is enqueued from now on runs after the event; at once if never recorded
  void synchronize() const;         // the host waits; throws as Stream::synchronize does

 private:
  void* native_ = nullptr;  // the cudaEvent_t
};

}  // namespace notellm

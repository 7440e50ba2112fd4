#include "runtime/device.h"

#include "runtime/gpu.h"

namespace notellm {
namespace {

// Throws where there is no CUDA to use.
void require_built() {
  if (!cuda_built)
    fail(ErrorKind::device,
         "device: cuda, but this notellm was built without CUDA: build it where nvcc and its libraries are found, or "
         "set device: cpu");
}

}  // namespace

void choose_device(Device device, int local_rank, int local_size) {
  if (device == Device::cpu) return;
  require_built();
  if constexpr (cuda_built) gpu::choose_device(local_rank, local_size);
}

Stream::Stream(Device device) : device_(device) {
  if (device == Device::cpu) return;
  require_built();
  if constexpr (cuda_built) native_ = gpu::create_stream();
}

Stream::~Stream() {
  library_.reset();
  if constexpr (cuda_built)
    if (native_) gpu::destroy_stream(native_);
}

void Stream::synchronize() {
  if constexpr (cuda_built)
    if (native_) gpu::synchronize_stream(native_);
}

Event::Event(Device device) {
  if (device == Device::cpu) return;
  require_built();
  if constexpr (cuda_built) native_ = gpu::create_event();
}

Event::~Event() {
  if constexpr (cuda_built)
    if (native_) gpu::destroy_event(native_);
}

void Event::record(Stream& stream) {
  if constexpr (cuda_built)
    if (native_) gpu::record(native_, stream);
}

void Event::wait(Stream& stream) const {
  if constexpr (cuda_built)
    if (native_) gpu::wait(native_, stream);
}

void Event::synchronize() const {
  if constexpr (cuda_built)
    if (native_) gpu::synchronize_event(native_);
}

}  // namespace notellm

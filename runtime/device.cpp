#include "runtime/device.h"

#include "runtime/gpu.h"

namespace notellm {

Stream::Stream(Device device) : device_(device) {
  if (device == Device::cpu) return;
  if constexpr (cuda_built)
    native_ = gpu::create_stream();
  else
    fail(ErrorKind::device, "this notellm was built without CUDA: build it where nvcc is found, or set device: cpu");
}

Stream::~Stream() {
  if constexpr (cuda_built)
    if (native_) gpu::destroy_stream(native_);
}

void Stream::synchronize() {
  if constexpr (cuda_built)
    if (native_) gpu::synchronize(native_);
}

}  // namespace notellm

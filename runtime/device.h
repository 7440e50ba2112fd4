// Where work runs and in what order.
#pragma once

#include "runtime/error.h"

namespace notellm {

enum class Device { cpu };

// An ordered queue of work on one device. Every op takes its stream explicitly. On the CPU an op has finished when it
// returns, so that a CPU stream only names the device.
class Stream {
 public:
  explicit Stream(Device device = Device::cpu) : device_(device) {}
  Device device() const { return device_; }

 private:
  Device device_;
};

}  // namespace notellm

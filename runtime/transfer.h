// Small arrays between host and device, without making either wait: Upload and Download.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "runtime/memory.h"

namespace notellm {

// Host arrays as one block of device memory: packed into pinned memory, sent by one copy on a stream of its own while
// other streams go on. With the CPU as device nothing is copied: the views are those of the host's arrays, which must
// outlive them. Two objects used in turn let one block be prepared while work still reads the other.
class Upload {
 public:
  explicit Upload(Device device = Device::cpu) : device_(device), copies_(device), sent_(device), read_(device) {}

  // Sets *second of each item to the device's view of `first`. Waits (the host) only for the previous send's copy; the
  // copy itself waits for what `done` says. Views of the previous send end.
  void send(std::initializer_list<std::pair<Tensor, Tensor*>> items);
  // What is enqueued on `stream` from now on may read the views.
  void wait(Stream& stream) const { sent_.wait(stream); }
  // What has been enqueued on `stream` is the last that reads the views; before the next send.
  void done(Stream& stream) { read_.record(stream); }

 private:
  Device device_;
  Stream copies_;
  Event sent_, read_;
  Buffer pinned_, block_;
};

// Results on their way to the host: copied in the order of a stream, read after wait(), while the stream goes on.
class Download {
 public:
  explicit Download(Device device = Device::cpu) : device_(device), arrived_(device) {}

  // Enqueues the copies. The tensors that come back hold the contents after wait(), until the next fetch.
  std::vector<Tensor> fetch(Stream& stream, std::initializer_list<Tensor> tensors);
  void wait() const { arrived_.synchronize(); }

 private:
  Device device_;
  Event arrived_;
  Buffer memory_;
};

}  // namespace notellm

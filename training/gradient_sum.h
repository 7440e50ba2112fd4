// The sum of the gradients over ranks, begun while the backward pass goes on.
#pragma once

#include "model/parameters.h"
#include "runtime/communicator.h"
#include "runtime/device.h"

namespace notellm {

// On CUDA each layer's part of the flat array is summed on a stream of its own as soon as it is ready, while the layers
// below are computed. On the CPU, where the ranks' cores are busy computing, everything is summed at the end.
class GradientSum {
 public:
  GradientSum(Communicator& ranks, Device device) : ranks_(ranks), sums_(device), ready_(device), done_(device) {}

  // The work that completes layer `layer` has been enqueued on `stream`; from the last layer to the first.
  void layer_done(Stream& stream, const Weights& gradients, int layer);
  // … and that of everything else. What `stream` does from now on finds the sums.
  void finish(Stream& stream, const Weights& gradients);

 private:
  void sum(Tensor flat, int64_t begin, int64_t end);

  Communicator& ranks_;
  Stream sums_;
  Event ready_, done_;
  int64_t begin_ = 0, end_ = 0;  // the part of the flat array that is being summed already
};

}  // namespace notellm

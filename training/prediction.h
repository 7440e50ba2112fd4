// How long a planned step will probably take on a cluster: a roofline of the computation, and a model of the network.
//
// A prediction, not a measurement. It leaves out: the host, launches, ranks that wait for slower ones, caches, and
// links that two collectives use at once.
//     a pass of products     max(operations / attainable speed, bytes / attainable memory speed)
//     attention              its operations at its own attainable share
//     norms, RoPE, SwiGLU    bytes / attainable memory speed
//     a collective           cluster.h: latency of its steps + bytes / attainable speed of the slowest link
// What overlaps: the sum of a layer's gradients over the data group, with the backward pass of the layers below it; the
// gather of a layer's parameters, with the computation of the layer before it. Nothing else: not what the tensor group
// exchanges, nor InfoNCE's vectors, nor what comes after the backward pass.
#pragma once

#include <string>
#include <vector>

#include "training/cluster.h"
#include "training/plan.h"

namespace notellm {

struct Prediction {
  struct Part {
    std::string name;
    double seconds;
  };
  std::vector<Part> parts;  // one after the other they are the step

  double seconds() const;
  double mfu = 0;  // the model's operations a second as a share of the vendor's peak of all GPUs
  double notes_per_second = 0;
};

Prediction predict(const RunConfig& config, const NoteStatistics& notes, const Plan& plan,
                   const ClusterConfig& cluster);

// Elements that a layer's ops which are no products read and write for each token, over all ranks of a tensor group:
// what their headers say. Forward: two norms with a residual (x, delta in; x, y out), RoPE on q and k, SwiGLU.
// Backward: the norms' results again (x in, y out), their gradients (dy, x, dx in; dx out), RoPE, SwiGLU's gradient.
double memory_op_elements(const ModelConfig& config, bool backward);

}  // namespace notellm

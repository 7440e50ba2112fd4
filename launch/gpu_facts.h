// What `doctor` says of this host's GPUs and NVIDIA's libraries. Only in builds with CUDA.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace notellm {

struct GpuFacts {
  std::vector<std::pair<std::string, std::string>> rows;  // name and value: driver, libraries, each GPU
  std::vector<std::string> warnings;
};
GpuFacts gpu_facts();

}  // namespace notellm

// A safetensors file of tensors in host memory.
#pragma once

#include <cstring>

#include "runtime/files.h"
#include "runtime/safetensors.h"

namespace notellm::test {

inline void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  const SafetensorsPlan plan = plan_safetensors(tensors, metadata);
  std::string content = plan.header;
  content.resize(static_cast<size_t>(plan.bytes));
  for (size_t i = 0; i < tensors.size(); ++i)
    std::memcpy(content.data() + plan.offsets[i], tensors[i].tensor.data, tensors[i].tensor.bytes());
  write_file(path, content);
}

}  // namespace notellm::test

// Descriptors of the stand-in libcudnn.so.9, and what runs a graph of them.
#pragma once

#include <cudnn.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace softgpu {

// A descriptor: the attributes that were set. Descriptors among their values are held.
struct CudnnNode {
  struct Value {
    int64_t count = 0;
    std::vector<std::byte> bytes;
    std::vector<std::shared_ptr<const CudnnNode>> nodes;
  };
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  std::map<cudnnBackendAttributeName_t, Value> values;

  bool has(cudnnBackendAttributeName_t name) const { return values.contains(name); }
  template <class T>
  T get(cudnnBackendAttributeName_t name, int64_t i = 0) const {
    T value;
    std::memcpy(&value, values.at(name).bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  const CudnnNode* node(cudnnBackendAttributeName_t name) const {
    const auto found = values.find(name);
    return found == values.end() ? nullptr : found->second.nodes[0].get();
  }
};

// What a tensor descriptor says.
struct CudnnTensor {
  int64_t id, dims[4], strides[4], alignment;
  cudnnDataType_t type;
  bool is_virtual, by_value;
  const CudnnNode* ragged;
  explicit CudnnTensor(const CudnnNode& node);
  int64_t elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
};
size_t bytes_of(cudnnDataType_t type);

// What is wrong with a descriptor that is about to be finalized; empty: nothing. Of operations: shapes and types.
std::string cudnn_problem(const CudnnNode& node);

// Queues the graph on a stream: every operation one after the other in f32, results rounded to their tensor's type.
// pack: the address of each tensor in device memory, by unique id; scalars: the values of those given by value.
void run_cudnn_graph(void* stream, std::shared_ptr<const CudnnNode> graph, std::map<int64_t, const void*> pack,
                     std::map<int64_t, float> scalars, const void* workspace, int64_t workspace_bytes);

}  // namespace softgpu

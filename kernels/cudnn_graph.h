// Graphs of cuDNN's backend API, as far as attention needs them. Only in builds with CUDA.
//
// A graph is tensors and operations between them; cuDNN finds a kernel for the whole. Tensors have 4 dimensions. A
// virtual one has no memory: it exists inside the kernel. Everything throws Error(device) with cuDNN's own text.
#pragma once

#include <cudnn.h>

#include <array>
#include <span>
#include <utility>
#include <vector>

#include "runtime/error.h"

namespace notellm::gpu::cudnn {

void check(cudnnStatus_t status, const char* what);

// A descriptor of the backend API, destroyed with its owner. Move-only.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type);
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor();

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values);
  template <class T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set(name, type, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.value_);
  }
  // The values that there are, at most `count`.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, void* values) const;
  cudnnStatus_t try_finalize() { return cudnnBackendFinalize(value_); }
  void finalize();

  cudnnBackendDescriptor_t value() const { return value_; }

 private:
  cudnnBackendDescriptor_t value_ = nullptr;
};

using Dims = std::array<int64_t, 4>;
// Strides of dims that lie in order, without gaps.
Dims dense(const Dims& dims);

class Graph {
 public:
  using Tensor = int;  // its number; unique id of its descriptor is one more
  static constexpr Tensor none = -1;

  // Tensors with memory, found in the variant pack. ragged: offsets [b + 1], in elements, at which the parts of the
  // first dimension begin, instead of its stride. scalar: one f32 of the host.
  Tensor data(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged = none);
  Tensor scalar();
  Tensor temporary(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged = none);  // virtual

  // c = a·b, over the last two dimensions. limits: how many rows of c, columns of c, and terms there are, [b] each.
  struct Limits {
    Tensor m = none, n = none, k = none;
  };
  void matmul(Tensor a, Tensor b, Tensor c, Limits limits);
  // to = mode(x, b, t), whose missing dimensions are repeated.
  void pointwise(cudnnPointwiseMode_t mode, Tensor x, Tensor b, Tensor t, Tensor to, cudnnDataType_t compute);
  // The same into a new virtual tensor of x's dims.
  Tensor pointwise(cudnnPointwiseMode_t mode, Tensor x, Tensor b = none, Tensor t = none,
                   cudnnDataType_t type = CUDNN_DATA_FLOAT, cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  Tensor index(Tensor like, int64_t axis, cudnnDataType_t compute);
  void reduce(cudnnReduceTensorOp_t op, Tensor x, Tensor to);
  void reshape(Tensor x, Tensor to);  // the same elements, seen through other dims and strides

  const Dims& dims(Tensor t) const { return tensors_[t].dims; }

 private:
  friend class Plan;
  struct Entry {
    Dims dims, strides;
    Descriptor descriptor;
  };
  Tensor add(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged, bool is_virtual,
             bool by_value);
  void pointwise(Descriptor mode, Tensor x, Tensor b, Tensor t, Tensor to);

  std::vector<Entry> tensors_;
  std::vector<Descriptor> operations_;
};

// A kernel that cuDNN chose for a graph: the first of its proposals that gives the same bits again and can be built.
class Plan {
 public:
  // device: a finalized DEVICEPROP descriptor.
  Plan(const Graph& graph, const Descriptor& device);

  int64_t workspace_bytes() const { return workspace_bytes_; }
  // Enqueues on the handle's stream. Every tensor with memory must be there.
  void run(cudnnHandle_t handle, std::span<const std::pair<Graph::Tensor, const void*>> pack, void* workspace) const;

 private:
  Descriptor plan_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace notellm::gpu::cudnn

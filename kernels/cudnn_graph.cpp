#include "kernels/cudnn_graph.h"

#include <algorithm>
#include <string>

namespace notellm::gpu::cudnn {

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char last[512] = {};
  cudnnGetLastErrorString(last, sizeof last);
  fail(ErrorKind::device, "{}: {}: {}", what, cudnnGetErrorString(status), last);
}

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  check(cudnnBackendCreateDescriptor(type, &value_), "cudnnBackendCreateDescriptor");
}
Descriptor::~Descriptor() {
  if (value_) cudnnBackendDestroyDescriptor(value_);
}

void Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                     const void* values) {
  check(cudnnBackendSetAttribute(value_, name, type, count, values), "cudnnBackendSetAttribute");
}
int64_t Descriptor::get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                        void* values) const {
  int64_t found = 0;
  check(cudnnBackendGetAttribute(value_, name, type, count, &found, values), "cudnnBackendGetAttribute");
  return std::min(found, count);
}
void Descriptor::finalize() { check(try_finalize(), "cudnnBackendFinalize"); }

Dims dense(const Dims& d) { return {d[1] * d[2] * d[3], d[2] * d[3], d[3], 1}; }

Graph::Tensor Graph::add(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged, bool is_virtual,
                         bool by_value) {
  constexpr int64_t alignment_bytes = 16;
  const int64_t id = static_cast<int64_t>(tensors_.size()) + 1;
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
  d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment_bytes);
  d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
  d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value);
  if (ragged != none) d.set(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, tensors_[ragged].descriptor);
  d.finalize();
  tensors_.push_back({dims, strides, std::move(d)});
  return static_cast<Tensor>(id - 1);
}
Graph::Tensor Graph::data(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged) {
  return add(type, dims, strides, ragged, false, false);
}
Graph::Tensor Graph::scalar() { return add(CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, none, false, true); }
Graph::Tensor Graph::temporary(cudnnDataType_t type, const Dims& dims, const Dims& strides, Tensor ragged) {
  return add(type, dims, strides, ragged, true, false);
}

void Graph::matmul(Tensor a, Tensor b, Tensor c, Limits limits) {
  Descriptor product(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  product.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  product.finalize();
  Descriptor d(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  d.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensors_[a].descriptor);
  d.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensors_[b].descriptor);
  d.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensors_[c].descriptor);
  d.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, product);
  const auto limit = [&](cudnnBackendAttributeName_t name, Tensor t) {
    if (t != none) d.set(name, tensors_[t].descriptor);
  };
  limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, limits.m);
  limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, limits.n);
  limit(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, limits.k);
  d.finalize();
  operations_.push_back(std::move(d));
}

namespace {
Descriptor pointwise_mode(cudnnPointwiseMode_t mode, cudnnDataType_t compute) {
  Descriptor d(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  d.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  d.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
  return d;
}
}  // namespace

void Graph::pointwise(Descriptor mode, Tensor x, Tensor b, Tensor t, Tensor to) {
  mode.finalize();
  Descriptor d(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  d.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode);
  d.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensors_[x].descriptor);
  d.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensors_[to].descriptor);
  if (b != none) d.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensors_[b].descriptor);
  if (t != none) d.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensors_[t].descriptor);
  d.finalize();
  operations_.push_back(std::move(d));
}
void Graph::pointwise(cudnnPointwiseMode_t mode, Tensor x, Tensor b, Tensor t, Tensor to, cudnnDataType_t compute) {
  pointwise(pointwise_mode(mode, compute), x, b, t, to);
}
Graph::Tensor Graph::pointwise(cudnnPointwiseMode_t mode, Tensor x, Tensor b, Tensor t, cudnnDataType_t type,
                               cudnnDataType_t compute) {
  const Tensor to = temporary(type, tensors_[x].dims, dense(tensors_[x].dims));
  pointwise(mode, x, b, t, to, compute);
  return to;
}
Graph::Tensor Graph::index(Tensor like, int64_t axis, cudnnDataType_t compute) {
  Descriptor mode = pointwise_mode(CUDNN_POINTWISE_GEN_INDEX, compute);
  mode.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  const Tensor to = temporary(CUDNN_DATA_INT32, tensors_[like].dims, dense(tensors_[like].dims));
  pointwise(std::move(mode), like, none, none, to);
  return to;
}

void Graph::reduce(cudnnReduceTensorOp_t op, Tensor x, Tensor to) {
  Descriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, op);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  reduction.finalize();
  Descriptor d(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  d.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  d.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensors_[x].descriptor);
  d.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensors_[to].descriptor);
  d.finalize();
  operations_.push_back(std::move(d));
}

void Graph::reshape(Tensor x, Tensor to) {
  Descriptor d(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  d.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensors_[x].descriptor);
  d.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensors_[to].descriptor);
  d.finalize();
  operations_.push_back(std::move(d));
}

namespace {

bool deterministic(const Descriptor& configuration) {
  const Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t value = engine.value();
  configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes;
  const int64_t count = engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                   static_cast<int64_t>(notes.size()), notes.data());
  return std::find(notes.begin(), notes.begin() + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ==
         notes.begin() + count;
}

}  // namespace

Plan::Plan(const Graph& graph, const Descriptor& device) : plan_(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
  std::vector<cudnnBackendDescriptor_t> operations;
  for (const Descriptor& d : graph.operations_) operations.push_back(d.value());
  Descriptor all(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  all.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(operations.size()),
          operations.data());
  all.finalize();

  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, all);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
  heuristics.finalize();
  constexpr int64_t most = 16;
  std::vector<Descriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> values;
  for (int64_t i = 0; i < most; ++i)
    values.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).value());
  const int64_t found =
      heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, most, values.data());

  std::string why = found == 0 ? "no engine" : "";
  for (int64_t i = 0; i < found; ++i) {
    if (!deterministic(configurations[i])) {
      why += " an engine that does not give the same bits again;";
      continue;
    }
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[i]);
    if (const cudnnStatus_t status = plan.try_finalize(); status != CUDNN_STATUS_SUCCESS) {
      why += fmt::format(" {};", cudnnGetErrorString(status));
      continue;
    }
    plan_ = std::move(plan);
    plan_.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace_bytes_);
    return;
  }
  fail(ErrorKind::device, "cuDNN has no kernel for this attention:{}; set attention: fused", why);
}

void Plan::run(cudnnHandle_t handle, std::span<const std::pair<Graph::Tensor, const void*>> pack,
               void* workspace) const {
  std::vector<int64_t> ids;
  std::vector<const void*> pointers;
  for (const auto& [tensor, pointer] : pack) {
    ids.push_back(tensor + 1);
    pointers.push_back(pointer);
  }
  Descriptor d(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  d.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, static_cast<int64_t>(ids.size()), ids.data());
  d.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, static_cast<int64_t>(pointers.size()),
        pointers.data());
  d.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  d.finalize();
  check(cudnnBackendExecute(handle, plan_.value(), d.value()), "cudnnBackendExecute");
}

}  // namespace notellm::gpu::cudnn

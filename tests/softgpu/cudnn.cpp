// The stand-in libcudnn.so.9: the calls, descriptors and attributes of the backend API that kernels/cudnn_graph.cpp
// uses, and no others. Each is checked as cuDNN documents it; the graph itself is run on the CPU (cudnn_run.cpp).
#include "tests/softgpu/cudnn.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <span>

#include "tests/softgpu/memory.h"
#include "tests/softgpu/streams.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

namespace softgpu {
namespace {

using Node = std::shared_ptr<CudnnNode>;
std::mutex mutex;
std::map<cudnnBackendDescriptor_t, Node> descriptors;
thread_local std::string last_error;

cudnnStatus_t refuse(const char* call, const std::string& text, cudnnStatus_t status = CUDNN_STATUS_BAD_PARAM) {
  Place place;
  place.kernel = call;
  last_error = text;
  const bool unknown = CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED;
  report(unknown ? FindingKind::unsupported : FindingKind::invalid_call, place, text);
  return status;
}

struct Attribute {
  cudnnBackendAttributeName_t name;
  cudnnBackendAttributeType_t type;
  size_t bytes;
  int64_t least, most;  // values
  bool required = true;
};
constexpr auto node_type = CUDNN_TYPE_BACKEND_DESCRIPTOR;
constexpr Attribute one_node(cudnnBackendAttributeName_t name, bool required = true) {
  return {name, node_type, 8, 1, 1, required};
}
constexpr int64_t many = 1024;

// What may be set; empty: a type that is not known here. OPERATIONGRAPH_OPS takes finalized operations, and so on.
std::span<const Attribute> attributes_of(cudnnBackendDescriptorType_t type) {
  static constexpr Attribute tensor[] = {{CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 4, 1, 1},
                                         {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 8, 4, 4},
                                         {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 8, 4, 4},
                                         {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 8, 1, 1},
                                         {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 8, 1, 1},
                                         {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, 1, 1},
                                         {CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, 1, 1},
                                         one_node(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, false)};
  static constexpr Attribute matmul[] = {{CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 4, 1, 1}};
  static constexpr Attribute matmul_operation[] = {one_node(CUDNN_ATTR_OPERATION_MATMUL_ADESC),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_BDESC),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_CDESC),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_DESC),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, false),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, false),
                                                   one_node(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, false)};
  static constexpr Attribute pointwise[] = {{CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 4, 1, 1},
                                            {CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 4, 1, 1},
                                            {CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 8, 1, 1, false}};
  static constexpr Attribute pointwise_operation[] = {
      one_node(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR), one_node(CUDNN_ATTR_OPERATION_POINTWISE_XDESC),
      one_node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC), one_node(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, false),
      one_node(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, false)};
  static constexpr Attribute reduction[] = {
      {CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 4, 1, 1},
      {CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 4, 1, 1}};
  static constexpr Attribute reduction_operation[] = {one_node(CUDNN_ATTR_OPERATION_REDUCTION_DESC),
                                                      one_node(CUDNN_ATTR_OPERATION_REDUCTION_XDESC),
                                                      one_node(CUDNN_ATTR_OPERATION_REDUCTION_YDESC)};
  static constexpr Attribute reshape_operation[] = {one_node(CUDNN_ATTR_OPERATION_RESHAPE_XDESC),
                                                    one_node(CUDNN_ATTR_OPERATION_RESHAPE_YDESC)};
  static constexpr Attribute graph[] = {{CUDNN_ATTR_OPERATIONGRAPH_OPS, node_type, 8, 1, 50}};
  static constexpr Attribute heuristics[] = {one_node(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH),
                                             {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 4, 1, 1},
                                             one_node(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP)};
  static constexpr Attribute plan[] = {one_node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)};
  static constexpr Attribute pack[] = {{CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 8, 1, many},
                                       {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 8, 1, many},
                                       {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 8, 1, 1}};
  static constexpr Attribute device[] = {{CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 8, 1, 1}};
  // Filled by cuDNN; what they hold cannot be set.
  static constexpr Attribute filled[] = {{CUDNN_ATTR_ENGINECFG_ENGINE, node_type, 8, 1, 0}};
  switch (type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      return tensor;
    case CUDNN_BACKEND_MATMUL_DESCRIPTOR:
      return matmul;
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return matmul_operation;
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      return pointwise;
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      return pointwise_operation;
    case CUDNN_BACKEND_REDUCTION_DESCRIPTOR:
      return reduction;
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
      return reduction_operation;
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return reshape_operation;
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      return graph;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
      return heuristics;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      return plan;
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
      return pack;
    case CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR:
      return device;
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
      return filled;
    default:
      return {};
  }
}

// The kind of descriptor that an attribute names; −1: an operation.
int kind_of(cudnnBackendAttributeName_t name) {
  switch (name) {
    case CUDNN_ATTR_OPERATION_MATMUL_DESC:
      return CUDNN_BACKEND_MATMUL_DESCRIPTOR;
    case CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR:
      return CUDNN_BACKEND_POINTWISE_DESCRIPTOR;
    case CUDNN_ATTR_OPERATION_REDUCTION_DESC:
      return CUDNN_BACKEND_REDUCTION_DESCRIPTOR;
    case CUDNN_ATTR_OPERATIONGRAPH_OPS:
      return -1;
    case CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH:
      return CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR;
    case CUDNN_ATTR_ENGINEHEUR_DEVICEPROP:
      return CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR;
    case CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG:
      return CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    default:
      return CUDNN_BACKEND_TENSOR_DESCRIPTOR;
  }
}
bool is_operation(cudnnBackendDescriptorType_t type) {
  return type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR || type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR ||
         type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR || type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR;
}

Node find(cudnnBackendDescriptor_t descriptor) {
  const std::lock_guard lock(mutex);
  const auto found = descriptors.find(descriptor);
  return found == descriptors.end() ? nullptr : found->second;
}

// The tensors of a graph by id: written(id) before, and read by, each operation in order. Empty: nothing wrong.
std::string graph_problem(const CudnnNode& graph, std::map<int64_t, const CudnnNode*>& tensors) {
  std::set<int64_t> written;
  std::string problem;
  for (const auto& op : graph.values.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes) {
    const CudnnNode* output = nullptr;
    for (const auto& [name, value] : op->values) {
      if (value.nodes.empty() || value.nodes[0]->type != CUDNN_BACKEND_TENSOR_DESCRIPTOR) continue;
      const CudnnNode* node = value.nodes[0].get();
      for (const CudnnNode* t : {node, node->node(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC)}) {
        if (!t) continue;
        const int64_t id = t->get<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
        if (!tensors.emplace(id, t).second && tensors[id] != t) return "two tensors with id " + std::to_string(id);
      }
      const CudnnTensor t(*node);
      const bool out = name == CUDNN_ATTR_OPERATION_MATMUL_CDESC || name == CUDNN_ATTR_OPERATION_POINTWISE_YDESC ||
                       name == CUDNN_ATTR_OPERATION_REDUCTION_YDESC || name == CUDNN_ATTR_OPERATION_RESHAPE_YDESC;
      if (out) output = node;
      if (!out && t.is_virtual && !written.contains(t.id))
        return "virtual tensor " + std::to_string(t.id) + " is read before it is written";
    }
    const CudnnTensor t(*output);
    if (t.by_value || !written.insert(t.id).second) return "tensor " + std::to_string(t.id) + " is written twice";
  }
  return "";
}

// As cuDNN's SDPA backward pass without atomics: the scores once more in bf16.
int64_t workspace_of(const CudnnNode& graph) {
  const auto& operations = graph.values.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes;
  int64_t bytes = 512;
  for (const auto& op : operations)
    if (op->type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)
      bytes = std::max(bytes, 2 * CudnnTensor(*op->node(CUDNN_ATTR_OPERATION_RESHAPE_YDESC)).elements());
  return bytes;
}

const CudnnNode& graph_of(const CudnnNode& plan) {
  return *plan.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->node(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
}

// ENGINEHEUR_RESULTS: one configuration, but none for a packed backward pass below sm_90, as cuDNN 9.19.
cudnnStatus_t heuristics_results(const CudnnNode& heuristics, int64_t requested, int64_t* count, void* to) {
  const auto graph = heuristics.values.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  const bool supported = major >= 9 || workspace_of(*graph.nodes[0]) == 512;
  *count = supported ? 1 : 0;
  if (!supported || requested == 0) return CUDNN_STATUS_SUCCESS;
  const Node configuration = find(*static_cast<cudnnBackendDescriptor_t*>(to));
  if (!configuration || configuration->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
    return refuse("cudnnBackendGetAttribute", "results into something else than engine configurations");
  configuration->values[CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH] = graph;
  configuration->finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t execute(cudnnHandle_t handle, const CudnnNode& plan, const CudnnNode& pack) {
  constexpr const char* call = "cudnnBackendExecute";
  const auto graph =
      plan.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->values.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).nodes[0];
  std::map<int64_t, const CudnnNode*> tensors;
  graph_problem(*graph, tensors);
  std::map<int64_t, const void*> pointers;
  std::map<int64_t, float> scalars;
  const int64_t count = pack.values.at(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS).count;
  for (int64_t i = 0; i < count; ++i) {
    const auto id = pack.get<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i);
    const void* pointer = pack.get<const void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
    if (!tensors.contains(id)) return refuse(call, "tensor " + std::to_string(id) + " is not in the graph");
    const CudnnTensor t(*tensors[id]);
    if (t.is_virtual) return refuse(call, "virtual tensor " + std::to_string(id) + " has memory");
    const auto address = reinterpret_cast<uint64_t>(pointer);
    if (!pointer || is_device_address(address) == t.by_value)
      return refuse(call, "tensor " + std::to_string(id) + " lies in the wrong memory");
    if (!t.by_value && address % t.alignment != 0)
      return refuse(call, "tensor " + std::to_string(id) + " is aligned less than its descriptor says");
    if (!pointers.emplace(id, pointer).second) return refuse(call, "tensor " + std::to_string(id) + " is there twice");
    if (t.by_value) scalars[id] = *static_cast<const float*>(pointer);
  }
  for (const auto& [id, node] : tensors)
    if (!CudnnTensor(*node).is_virtual && !pointers.contains(id))
      return refuse(call, "tensor " + std::to_string(id) + " has no memory");
  run_cudnn_graph(handle->stream, graph, std::move(pointers), std::move(scalars),
                  pack.get<const void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE), workspace_of(*graph));
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace
}  // namespace softgpu

using namespace softgpu;

extern "C" {

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  switch (CUDNN_STATUS_CATEGORY(status)) {
    case 0:
      return "CUDNN_STATUS_SUCCESS";
    case 1000:
      return "CUDNN_STATUS_NOT_INITIALIZED";
    case 2000:
      return "CUDNN_STATUS_BAD_PARAM";
    case 3000:
      return "CUDNN_STATUS_NOT_SUPPORTED";
    default:
      return "CUDNN_STATUS_INTERNAL_ERROR";
  }
}
void cudnnGetLastErrorString(char* message, size_t size) {
  if (size == 0) return;
  const size_t length = std::min(size - 1, last_error.size());
  std::copy_n(last_error.data(), length, message);
  message[length] = 0;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  int count = 0;
  if (!handle) return refuse("cudnnCreate", "no place for the handle");
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    cudaGetLastError();
    last_error = "no CUDA device";
    return CUDNN_STATUS_NOT_INITIALIZED;
  }
  *handle = new cudnnContext;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  if (!handle || !is_stream(stream)) return refuse("cudnnSetStream", "not a handle, or not a stream");
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* to) {
  constexpr const char* call = "cudnnBackendCreateDescriptor";
  if (!to) return refuse(call, "no place for the descriptor");
  if (attributes_of(type).empty())
    return refuse(call, "descriptor type " + std::to_string(type), CUDNN_STATUS_NOT_SUPPORTED);
  auto node = std::make_shared<CudnnNode>();
  node->type = type;
  *to = node.get();
  const std::lock_guard lock(mutex);
  descriptors[*to] = std::move(node);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  const std::lock_guard lock(mutex);
  if (descriptors.erase(descriptor) == 0) return refuse("cudnnBackendDestroyDescriptor", "not a descriptor");
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  constexpr const char* call = "cudnnBackendSetAttribute";
  const std::string which = "attribute " + std::to_string(name) + ": ";
  const Node node = find(descriptor);
  if (!node || !values) return refuse(call, which + "not a descriptor, or no values");
  if (node->finalized) return refuse(call, which + "the descriptor has been finalized");
  const auto attributes = attributes_of(node->type);
  const auto attribute =
      std::find_if(attributes.begin(), attributes.end(), [&](const Attribute& a) { return a.name == name; });
  if (attribute == attributes.end() || attribute->most == 0)
    return refuse(call, which + "not one of descriptor type " + std::to_string(node->type), CUDNN_STATUS_NOT_SUPPORTED);
  if (attribute->type != type)
    return refuse(call, which + "values of type " + std::to_string(type), CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
  if (count < attribute->least || count > attribute->most)
    return refuse(call, which + std::to_string(count) + " values", CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT);
  CudnnNode::Value value;
  value.count = count;
  const auto* bytes = static_cast<const std::byte*>(values);
  value.bytes.assign(bytes, bytes + count * attribute->bytes);
  if (type == node_type)
    for (int64_t i = 0; i < count; ++i) {
      const Node child = find(static_cast<const cudnnBackendDescriptor_t*>(values)[i]);
      if (!child || !child->finalized)
        return refuse(call, which + "a descriptor that is not finalized", CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
      if (kind_of(name) < 0 ? !is_operation(child->type) : kind_of(name) != child->type)
        return refuse(call, which + "a descriptor of type " + std::to_string(child->type));
      value.nodes.push_back(child);
    }
  node->values[name] = std::move(value);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  constexpr const char* call = "cudnnBackendFinalize";
  const Node node = find(descriptor);
  if (!node || node->finalized) return refuse(call, "not a descriptor, or finalized before");
  for (const Attribute& a : attributes_of(node->type))
    if (a.required && !node->has(a.name)) return refuse(call, "attribute " + std::to_string(a.name) + " is not set");
  std::string problem = cudnn_problem(*node);
  std::map<int64_t, const CudnnNode*> tensors;
  if (node->type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) problem = graph_problem(*node, tensors);
  if (node->type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR &&
      node->values[CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS].count !=
          node->values[CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS].count)
    problem = "not as many ids as pointers";
  if (!problem.empty()) return refuse(call, problem);
  node->finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t requested, int64_t* count,
                                       void* values) {
  constexpr const char* call = "cudnnBackendGetAttribute";
  const Node node = find(descriptor);
  if (!node || !node->finalized || !count || (!values && requested > 0))
    return refuse(call, "not a finalized descriptor, or no place for values");
  if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS && node->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && type == node_type)
    return heuristics_results(*node, requested, count, values);
  if (name == CUDNN_ATTR_ENGINECFG_ENGINE && node->type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && type == node_type &&
      requested == 1) {
    const Node engine = find(*static_cast<cudnnBackendDescriptor_t*>(values));
    if (!engine || engine->type != CUDNN_BACKEND_ENGINE_DESCRIPTOR) return refuse(call, "not an engine to fill");
    engine->finalized = true;
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE && node->type == CUDNN_BACKEND_ENGINE_DESCRIPTOR &&
      type == CUDNN_TYPE_NUMERICAL_NOTE) {
    *count = 1;
    if (requested > 0) *static_cast<cudnnBackendNumericalNote_t*>(values) = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && node->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
      type == CUDNN_TYPE_INT64 && requested == 1) {
    *static_cast<int64_t*>(values) = workspace_of(graph_of(*node));
    *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  return refuse(call, "attribute " + std::to_string(name), CUDNN_STATUS_NOT_SUPPORTED);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
  const Node p = find(plan), v = find(pack);
  if (!handle || !p || !v || !p->finalized || !v->finalized || p->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR ||
      v->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
    return refuse("cudnnBackendExecute", "not a finalized plan and variant pack");
  return execute(handle, *p, *v);
}

}  // extern "C"

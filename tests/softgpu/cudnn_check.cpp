// What cuDNN documents of the descriptors that kernels/cudnn_graph.cpp makes.
#include "tests/softgpu/cudnn.h"

namespace softgpu {

size_t bytes_of(cudnnDataType_t type) { return type == CUDNN_DATA_BFLOAT16 ? 2 : type == CUDNN_DATA_BOOLEAN ? 1 : 4; }

CudnnTensor::CudnnTensor(const CudnnNode& node)
    : id(node.get<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)),
      alignment(node.get<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)),
      type(node.get<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE)),
      is_virtual(node.get<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)),
      by_value(node.get<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)),
      ragged(node.node(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC)) {
  for (int i = 0; i < 4; ++i) {
    dims[i] = node.get<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS, i);
    strides[i] = node.get<int64_t>(CUDNN_ATTR_TENSOR_STRIDES, i);
  }
}

namespace {

std::string shape(const CudnnTensor& t) {
  std::string text = "[";
  for (int64_t d : t.dims) text += std::to_string(d) + " ";
  text.back() = ']';
  return text;
}

bool is_vector(const CudnnTensor& t, int64_t size) {
  return t.type == CUDNN_DATA_INT32 && !t.is_virtual && !t.by_value && t.dims[0] == size && t.elements() == size &&
         t.strides[0] == 1;
}

std::string tensor_problem(const CudnnNode& node) {
  const CudnnTensor t(node);
  for (int i = 0; i < 4; ++i)
    if (t.dims[i] < 1 || t.strides[i] < 1) return "a tensor with a dimension or stride below 1";
  if (t.is_virtual && t.by_value) return "a tensor that is virtual and given by value";
  if (t.by_value && (t.elements() != 1 || t.type != CUDNN_DATA_FLOAT)) return "by value something else than one f32";
  if (t.alignment < static_cast<int64_t>(bytes_of(t.type)) || t.alignment % bytes_of(t.type) != 0)
    return "an alignment that is no multiple of the element's size";
  if (t.type == CUDNN_DATA_BOOLEAN && !t.is_virtual) return "booleans in memory";
  if (t.ragged && !is_vector(CudnnTensor(*t.ragged), t.dims[0] + 1))
    return "ragged offsets that are not " + std::to_string(t.dims[0] + 1) + " i32";
  return "";
}

std::string matmul_problem(const CudnnNode& node) {
  const CudnnTensor a(*node.node(CUDNN_ATTR_OPERATION_MATMUL_ADESC)), b(*node.node(CUDNN_ATTR_OPERATION_MATMUL_BDESC)),
      c(*node.node(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
  const bool fit = a.dims[0] == b.dims[0] && a.dims[0] == c.dims[0] && a.dims[1] == c.dims[1] &&
                   a.dims[1] % b.dims[1] == 0 && a.dims[2] == c.dims[2] && a.dims[3] == b.dims[2] &&
                   b.dims[3] == c.dims[3];
  if (!fit) return "a product " + shape(a) + " times " + shape(b) + " into " + shape(c);
  for (auto name : {CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC,
                    CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC})
    if (node.has(name) && !is_vector(CudnnTensor(*node.node(name)), a.dims[0]))
      return "an override that is not an i32 for each of the first dimension";
  return "";
}

// Inputs of a mode; 0: not known here.
int inputs_of(cudnnPointwiseMode_t mode) {
  switch (mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_GEN_INDEX:
      return 1;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_CMP_LT:
    case CUDNN_POINTWISE_CMP_GE:
    case CUDNN_POINTWISE_LOGICAL_AND:
      return 2;
    case CUDNN_POINTWISE_BINARY_SELECT:
      return 3;
    default:
      return 0;
  }
}

std::string mode_problem(const CudnnNode& node) {
  const auto mode = node.get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
  if (inputs_of(mode) == 0) return "pointwise mode " + std::to_string(mode);
  if ((mode == CUDNN_POINTWISE_GEN_INDEX) != node.has(CUDNN_ATTR_POINTWISE_AXIS))
    return "an axis without GEN_INDEX, or GEN_INDEX without one";
  if (node.has(CUDNN_ATTR_POINTWISE_AXIS)) {
    const auto axis = node.get<int64_t>(CUDNN_ATTR_POINTWISE_AXIS);
    if (axis < 0 || axis > 3) return "axis " + std::to_string(axis);
  }
  return "";
}

std::string pointwise_problem(const CudnnNode& node) {
  const int inputs = inputs_of(
      node.node(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR)->get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE));
  if (node.has(CUDNN_ATTR_OPERATION_POINTWISE_BDESC) != (inputs >= 2) ||
      node.has(CUDNN_ATTR_OPERATION_POINTWISE_TDESC) != (inputs >= 3))
    return "a pointwise operation with too few or too many inputs";
  const CudnnTensor y(*node.node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
  for (auto name : {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                    CUDNN_ATTR_OPERATION_POINTWISE_TDESC}) {
    if (!node.has(name)) continue;
    const CudnnTensor x(*node.node(name));
    for (int i = 0; i < 4; ++i)
      if (x.dims[i] != y.dims[i] && x.dims[i] != 1) return "a pointwise operation of " + shape(x) + " into " + shape(y);
    if (name == CUDNN_ATTR_OPERATION_POINTWISE_TDESC && x.type != CUDNN_DATA_BOOLEAN) return "a mask of no booleans";
  }
  return "";
}

std::string operation_problem(const CudnnNode& node) {
  switch (node.type) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return matmul_problem(node);
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      return pointwise_problem(node);
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: {
      const CudnnTensor x(*node.node(CUDNN_ATTR_OPERATION_REDUCTION_XDESC)),
          y(*node.node(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
      for (int i = 0; i < 4; ++i)
        if (x.dims[i] % y.dims[i] != 0) return "a reduction of " + shape(x) + " to " + shape(y);
      return "";
    }
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: {
      const CudnnTensor x(*node.node(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)),
          y(*node.node(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
      const bool transposed = x.dims[0] == y.dims[0] && x.dims[1] == y.dims[1] && x.dims[2] == y.dims[3] &&
                              x.dims[3] == y.dims[2] && x.strides[2] == y.strides[3] && x.strides[3] == y.strides[2];
      return transposed ? "" : "a reshape that is no transposition of the last two dimensions";
    }
    default:
      return "";
  }
}

}  // namespace

std::string cudnn_problem(const CudnnNode& node) {
  switch (node.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      return tensor_problem(node);
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      return mode_problem(node);
    case CUDNN_BACKEND_MATMUL_DESCRIPTOR:
      return node.get<cudnnDataType_t>(CUDNN_ATTR_MATMUL_COMP_TYPE) == CUDNN_DATA_FLOAT ? "" : "sums not in f32";
    case CUDNN_BACKEND_REDUCTION_DESCRIPTOR: {
      const auto op = node.get<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
      if (op != CUDNN_REDUCE_TENSOR_ADD && op != CUDNN_REDUCE_TENSOR_MAX) return "another reduction than ADD and MAX";
      return node.get<cudnnDataType_t>(CUDNN_ATTR_REDUCTION_COMP_TYPE) == CUDNN_DATA_FLOAT ? "" : "sums not in f32";
    }
    default:
      return operation_problem(node);
  }
}

}  // namespace softgpu

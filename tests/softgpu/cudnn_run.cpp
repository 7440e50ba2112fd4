// Runs a graph of the stand-in libcudnn: all tensors as f32 arrays in the order of their dims, operation by operation.
#include <bit>
#include <cmath>

#include "tests/softgpu/cudnn.h"
#include "tests/softgpu/memory.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

constexpr const char* call = "cudnnBackendExecute";

float rounded(float x, cudnnDataType_t type) {
  if (type != CUDNN_DATA_BFLOAT16 || std::isnan(x)) return x;
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

class Run {
 public:
  Run(const std::map<int64_t, const void*>& pack, const std::map<int64_t, float>& scalars, WorkId work)
      : pack_(pack), scalars_(scalars), work_(work) {
    place_.kernel = call;
  }

  void operation(const CudnnNode& op) {
    switch (op.type) {
      case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        return matmul(op);
      case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        return pointwise(op);
      case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        return reduction(op);
      default:
        return transposition(op);
    }
  }
  bool write_workspace(const void* workspace, int64_t bytes) {
    return bytes == 0 || access_write(reinterpret_cast<uint64_t>(workspace), bytes, work_, place_);
  }
  bool good() const { return good_; }

 private:
  using Array = std::vector<float>;

  uint64_t address(const CudnnTensor& t) const { return reinterpret_cast<uint64_t>(pack_.at(t.id)); }
  static size_t at(const CudnnTensor& t, int64_t b, int64_t h, int64_t i, int64_t j) {
    return ((b * t.dims[1] + h) * t.dims[2] + i) * t.dims[3] + j;
  }

  std::vector<int64_t> integers(const CudnnNode* node) {
    const CudnnTensor t(*node);
    std::vector<int64_t> result(t.dims[0]);
    if (!access_read(address(t), result.size() * 4, work_, place_)) {
      good_ = false;
      return result;
    }
    const auto* from = reinterpret_cast<const int32_t*>(host_view(address(t)));
    for (size_t i = 0; i < result.size(); ++i) result[i] = from[i];
    return result;
  }

  // f(element of the array, its address) for each element of a tensor in memory, after `access` of each run of them
  // that lies together. A ragged tensor has as many rows as lie between two offsets.
  template <class Access, class F>
  void each(const CudnnTensor& t, const Access& access, const F& f) {
    const auto offsets = t.ragged ? integers(t.ragged) : std::vector<int64_t>();
    const bool columns_are_rows = t.strides[3] > t.strides[2];  // of memory
    const int outer = columns_are_rows ? 3 : 2, inner = columns_are_rows ? 2 : 3;
    const size_t size = bytes_of(t.type);
    for (int64_t b = 0; b < t.dims[0]; ++b) {
      const int64_t begin = t.ragged ? offsets[b] : b * t.strides[0];
      const int64_t rows = t.ragged ? (offsets[b + 1] - offsets[b]) / t.strides[outer] : t.dims[outer];
      if (rows < 0 || rows > t.dims[outer]) return problem("ragged offsets that do not rise, or by more than the dim");
      for (int64_t h = 0; h < t.dims[1]; ++h)
        for (int64_t row = 0; row < rows; ++row) {
          const uint64_t first = address(t) + (begin + h * t.strides[1] + row * t.strides[outer]) * size;
          if (!access(first, ((t.dims[inner] - 1) * t.strides[inner] + 1) * size, work_, place_)) {
            good_ = false;
            return;
          }
          for (int64_t c = 0; c < t.dims[inner]; ++c)
            f(columns_are_rows ? at(t, b, h, c, row) : at(t, b, h, row, c),
              host_view(first + c * t.strides[inner] * size));
        }
    }
  }

  void problem(const char* text) {
    good_ = false;
    report(FindingKind::invalid_call, place_, text);
  }

  // A tensor's values; elements that a ragged tensor does not have are 0.
  const Array& load(const CudnnTensor& t) {
    if (const auto found = arrays_.find(t.id); found != arrays_.end()) return found->second;
    Array& array = arrays_[t.id];
    array.resize(t.elements());
    if (t.by_value) {
      array[0] = scalars_.at(t.id);
    } else if (t.type == CUDNN_DATA_INT32) {
      size_t i = 0;
      for (int64_t x : integers(&source(t))) array[i++] = static_cast<float>(x);
    } else {
      each(t, access_read, [&](size_t i, const std::byte* from) {
        uint32_t bits = 0;
        std::memcpy(t.type == CUDNN_DATA_BFLOAT16 ? reinterpret_cast<std::byte*>(&bits) + 2
                                                  : reinterpret_cast<std::byte*>(&bits),
                    from, bytes_of(t.type));
        array[i] = std::bit_cast<float>(bits);
      });
    }
    return array;
  }
  const CudnnNode& source(const CudnnTensor& t) const { return *nodes_.at(t.id); }
  const Array& load(const CudnnNode* node) {
    const CudnnTensor t(*node);
    nodes_[t.id] = node;
    return load(t);
  }

  void store(const CudnnTensor& t, Array array) {
    for (float& x : array) x = rounded(x, t.type);
    if (!t.is_virtual)
      each(t, access_write, [&](size_t i, std::byte* to) {
        const auto bits = std::bit_cast<uint32_t>(array[i]);
        std::memcpy(to, reinterpret_cast<const std::byte*>(&bits) + (t.type == CUDNN_DATA_BFLOAT16 ? 2 : 0),
                    bytes_of(t.type));
      });
    arrays_[t.id] = std::move(array);
  }

  void matmul(const CudnnNode& op) {
    const CudnnNode *node_a = op.node(CUDNN_ATTR_OPERATION_MATMUL_ADESC),
                    *node_b = op.node(CUDNN_ATTR_OPERATION_MATMUL_BDESC);
    const CudnnTensor ta(*node_a), tb(*node_b), tc(*op.node(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
    const Array &a = load(node_a), &b = load(node_b);
    const auto limits = [&](cudnnBackendAttributeName_t name, int64_t all) {
      return op.has(name) ? integers(op.node(name)) : std::vector<int64_t>(ta.dims[0], all);
    };
    const auto m = limits(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, tc.dims[2]),
               n = limits(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, tc.dims[3]),
               k = limits(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, ta.dims[3]);
    Array c(tc.elements());
    const int64_t group = ta.dims[1] / tb.dims[1];
    for (int64_t batch = 0; batch < ta.dims[0]; ++batch) {
      if (m[batch] > tc.dims[2] || n[batch] > tc.dims[3] || k[batch] > ta.dims[3])
        return problem("a length beyond the tensor's");
      for (int64_t h = 0; h < ta.dims[1]; ++h)
        for (int64_t i = 0; i < m[batch]; ++i)
          for (int64_t l = 0; l < k[batch]; ++l) {
            const float x = a[at(ta, batch, h, i, l)];
            const float* from = &b[at(tb, batch, h / group, l, 0)];
            float* to = &c[at(tc, batch, h, i, 0)];
            for (int64_t j = 0; j < n[batch]; ++j) to[j] += x * from[j];
          }
    }
    store(tc, std::move(c));
  }

  static float apply(cudnnPointwiseMode_t mode, float x, float b, float t) {
    switch (mode) {
      case CUDNN_POINTWISE_EXP:
        return std::exp(x);
      case CUDNN_POINTWISE_LOG:
        return std::log(x);
      case CUDNN_POINTWISE_ADD:
        return x + b;
      case CUDNN_POINTWISE_SUB:
        return x - b;
      case CUDNN_POINTWISE_MUL:
        return x * b;
      case CUDNN_POINTWISE_DIV:
        return x / b;
      case CUDNN_POINTWISE_CMP_LT:
        return x < b;
      case CUDNN_POINTWISE_CMP_GE:
        return x >= b;
      case CUDNN_POINTWISE_LOGICAL_AND:
        return x != 0 && b != 0;
      default:  // BINARY_SELECT
        return t != 0 ? x : b;
    }
  }

  void pointwise(const CudnnNode& op) {
    const CudnnNode& description = *op.node(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const auto mode = description.get<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    const CudnnTensor ty(*op.node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    struct Input {
      const Array* array = nullptr;
      int64_t steps[4] = {};
    };
    const auto input = [&](cudnnBackendAttributeName_t name) {
      Input in;
      if (!op.has(name)) return in;
      const CudnnTensor t(*op.node(name));
      in.array = &load(op.node(name));
      int64_t step = 1;
      for (int i = 3; i >= 0; step *= t.dims[i--]) in.steps[i] = t.dims[i] == 1 ? 0 : step;
      return in;
    };
    const Input x = input(CUDNN_ATTR_OPERATION_POINTWISE_XDESC), b = input(CUDNN_ATTR_OPERATION_POINTWISE_BDESC),
                t = input(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    Array y(ty.elements());
    int64_t i[4];
    const auto value = [&](const Input& in) {
      return in.array ? (*in.array)[i[0] * in.steps[0] + i[1] * in.steps[1] + i[2] * in.steps[2] + i[3] * in.steps[3]]
                      : 0.0f;
    };
    size_t next = 0;
    for (i[0] = 0; i[0] < ty.dims[0]; ++i[0])
      for (i[1] = 0; i[1] < ty.dims[1]; ++i[1])
        for (i[2] = 0; i[2] < ty.dims[2]; ++i[2])
          for (i[3] = 0; i[3] < ty.dims[3]; ++i[3])
            y[next++] = mode == CUDNN_POINTWISE_GEN_INDEX
                            ? static_cast<float>(i[description.get<int64_t>(CUDNN_ATTR_POINTWISE_AXIS)])
                            : apply(mode, value(x), value(b), value(t));
    store(ty, std::move(y));
  }

  void reduction(const CudnnNode& op) {
    const CudnnTensor tx(*op.node(CUDNN_ATTR_OPERATION_REDUCTION_XDESC)),
        ty(*op.node(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
    const bool is_max =
        op.node(CUDNN_ATTR_OPERATION_REDUCTION_DESC)->get<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR) ==
        CUDNN_REDUCE_TENSOR_MAX;
    const Array& x = load(op.node(CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
    Array y(ty.elements(), is_max ? -INFINITY : 0.0f);
    const auto group = [&](int i) { return tx.dims[i] / ty.dims[i]; };  // neighbours that become one
    size_t next = 0;
    for (int64_t b = 0; b < tx.dims[0]; ++b)
      for (int64_t h = 0; h < tx.dims[1]; ++h)
        for (int64_t i = 0; i < tx.dims[2]; ++i)
          for (int64_t j = 0; j < tx.dims[3]; ++j) {
            float& to = y[at(ty, b / group(0), h / group(1), i / group(2), j / group(3))];
            to = is_max ? std::max(to, x[next]) : to + x[next];
            ++next;
          }
    store(ty, std::move(y));
  }

  void transposition(const CudnnNode& op) {
    const CudnnTensor tx(*op.node(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)),
        ty(*op.node(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
    const Array& x = load(op.node(CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
    Array y(ty.elements());
    for (int64_t b = 0; b < ty.dims[0]; ++b)
      for (int64_t h = 0; h < ty.dims[1]; ++h)
        for (int64_t i = 0; i < ty.dims[2]; ++i)
          for (int64_t j = 0; j < ty.dims[3]; ++j) y[at(ty, b, h, i, j)] = x[at(tx, b, h, j, i)];
    store(ty, std::move(y));
  }

  const std::map<int64_t, const void*>& pack_;
  const std::map<int64_t, float>& scalars_;
  WorkId work_;
  Place place_;
  std::map<int64_t, Array> arrays_;
  std::map<int64_t, const CudnnNode*> nodes_;
  bool good_ = true;
};

}  // namespace

void run_cudnn_graph(void* stream, std::shared_ptr<const CudnnNode> graph, std::map<int64_t, const void*> pack,
                     std::map<int64_t, float> scalars, const void* workspace, int64_t workspace_bytes) {
  enqueue(stream, call,
          [graph, pack = std::move(pack), scalars = std::move(scalars), workspace, workspace_bytes](WorkId work) {
            Run run(pack, scalars, work);
            if (!run.write_workspace(workspace, workspace_bytes)) return;
            for (const auto& op : graph->values.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes) {
              run.operation(*op);
              if (!run.good()) return;
            }
          });
}

}  // namespace softgpu

// The stand-in libcublasLt.so.13: the calls that kernels/gemm_cuda.cpp makes, checked as cuBLASLt documents them, and
// the product itself on the CPU: operands as they are, sums in f32, the result rounded once.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "tests/softgpu/engine.h"
#include "tests/softgpu/streams.h"

struct cublasLtContext {
  int unused = 0;
};

namespace softgpu {
namespace {

// What stands in the opaque structs of the real header: a magic number, and the values.
struct Operation {
  uint64_t magic = 0x6f7065726174;
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
};
struct Layout {
  uint64_t magic = 0x6c61796f7574;
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint64_t magic = 0x70726566;
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  // what cuBLASLt takes for granted
};
struct Algorithm {  // in the beginning of cublasLtMatmulAlgo_t
  uint64_t magic = 0x616c676f;
  uint32_t alignment[4];
  uint64_t workspace;
  uint64_t key;  // of the shape that it was chosen for
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

cublasStatus_t refuse(const char* call, const std::string& text, FindingKind kind = FindingKind::invalid_call,
                      cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE) {
  Place place;
  place.kernel = call;
  report(kind, place, text);
  return status;
}
cublasStatus_t unsupported(const char* call, const std::string& text) {
  return refuse(call, text, FindingKind::unsupported, CUBLAS_STATUS_NOT_SUPPORTED);
}

template <class T, class Handle>
const T* as(Handle handle) {
  const auto* p = reinterpret_cast<const T*>(handle);
  return p && p->magic == T{}.magic ? p : nullptr;
}
template <>
const Layout* as<Layout, cublasLtMatrixLayout_t>(cublasLtMatrixLayout_t handle) {
  const auto* p = reinterpret_cast<const Layout*>(handle);
  return p && p->magic == 0x6c61796f7574 ? p : nullptr;
}

size_t bytes_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

// m × n of the result and k; false: the layouts do not fit each other.
struct Sizes {
  uint64_t m, n, k;
};
bool sizes_of(const Operation& o, const Layout& a, const Layout& b, const Layout& c, Sizes& s) {
  s.m = o.a == CUBLAS_OP_N ? a.rows : a.cols;
  s.k = o.a == CUBLAS_OP_N ? a.cols : a.rows;
  s.n = o.b == CUBLAS_OP_N ? b.cols : b.rows;
  return (o.b == CUBLAS_OP_N ? b.rows : b.cols) == s.k && c.rows == s.m && c.cols == s.n;
}
bool types_fit(const Layout& a, const Layout& b, const Layout& c) {
  if (a.type != b.type) return false;
  return a.type == CUDA_R_32F ? c.type == CUDA_R_32F : c.type == CUDA_R_16BF || c.type == CUDA_R_32F;
}
uint64_t key_of(const Operation& o, const Layout& a, const Layout& b, const Layout& c) {
  uint64_t key = 14695981039346656037u;
  for (uint64_t x : {uint64_t(o.a), uint64_t(o.b), uint64_t(a.type), a.rows, a.cols, uint64_t(a.ld), b.rows, b.cols,
                     uint64_t(b.ld), uint64_t(c.type), uint64_t(c.ld)})
    key = (key ^ x) * 1099511628211u;
  return key;
}

float value_at(const std::byte* data, cudaDataType_t type, size_t i) {
  if (type == CUDA_R_32F) return reinterpret_cast<const float*>(data)[i];
  return std::bit_cast<float>(uint32_t{reinterpret_cast<const uint16_t*>(data)[i]} << 16);
}
void set_value(std::byte* data, cudaDataType_t type, size_t i, float x) {
  if (type == CUDA_R_32F) {
    reinterpret_cast<float*>(data)[i] = x;
    return;
  }
  const auto u = std::bit_cast<uint32_t>(x);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  reinterpret_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(nan ? 0x7fff : (u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

struct Call {
  Operation operation;
  Layout a, b, c;
  float alpha, beta;
  uint64_t at_a, at_b, at_c;
};

bool record(const Call& call, WorkId work) {
  Place place;
  place.kernel = "cublasLtMatmul";
  const auto columns = [&](const Layout& l, uint64_t address, auto&& access) {
    if (static_cast<uint64_t>(l.ld) == l.rows) return access(address, l.rows * l.cols * bytes_of(l.type));
    for (uint64_t column = 0; column < l.cols; ++column)
      if (!access(address + column * static_cast<uint64_t>(l.ld) * bytes_of(l.type), l.rows * bytes_of(l.type)))
        return false;
    return true;
  };
  const auto read = [&](uint64_t at, size_t bytes) { return access_read(at, bytes, work, place); };
  const auto write = [&](uint64_t at, size_t bytes) { return access_write(at, bytes, work, place); };
  return columns(call.a, call.at_a, read) && columns(call.b, call.at_b, read) &&
         (call.beta == 0 || columns(call.c, call.at_c, read)) && columns(call.c, call.at_c, write);
}

// Operands as rows of f32, [m, k] and [n, k], so that the inner loop runs over neighbours.
std::vector<float> rows_of(const Layout& l, uint64_t address, bool transposed, uint64_t count, uint64_t k) {
  std::vector<float> rows(count * k);
  const std::byte* data = host_view(address);
  for (uint64_t r = 0; r < count; ++r)
    for (uint64_t x = 0; x < k; ++x)
      rows[r * k + x] = value_at(
          data, l.type, transposed ? r * static_cast<uint64_t>(l.ld) + x : x * static_cast<uint64_t>(l.ld) + r);
  return rows;
}

void multiply(const Call& call, const Sizes& s) {
  const std::vector<float> a = rows_of(call.a, call.at_a, call.operation.a == CUBLAS_OP_T, s.m, s.k);
  const std::vector<float> b = rows_of(call.b, call.at_b, call.operation.b == CUBLAS_OP_N, s.n, s.k);
  std::byte* c = host_view(call.at_c);
  constexpr int width = 16;  // sums side by side, so that the loop is done in vectors
  for (uint64_t n = 0; n < s.n; ++n)
    for (uint64_t m = 0; m < s.m; ++m) {
      float sums[width] = {};
      const float *x = a.data() + m * s.k, *y = b.data() + n * s.k;
      uint64_t i = 0;
      for (; i + width <= s.k; i += width)
        for (int lane = 0; lane < width; ++lane)
          sums[lane] += x[i + static_cast<uint64_t>(lane)] * y[i + static_cast<uint64_t>(lane)];
      float sum = 0;
      for (const float part : sums) sum += part;
      for (; i < s.k; ++i) sum += x[i] * y[i];
      const size_t place = n * static_cast<uint64_t>(call.c.ld) + m;
      const float old = call.beta == 0 ? 0 : call.beta * value_at(c, call.c.type, place);
      set_value(c, call.c.type, place, call.alpha * sum + old);
    }
}

template <class T>
cublasStatus_t create(const char* call, void* to, T value) {
  if (!to) return refuse(call, "a null pointer for the result");
  *static_cast<T**>(to) = new T(value);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace softgpu

using namespace softgpu;

extern "C" {

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}
size_t cublasLtGetVersion() { return CUBLAS_VER_MAJOR * 10000 + CUBLAS_VER_MINOR * 100 + CUBLAS_VER_PATCH; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(const cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* to, cublasComputeType_t compute, cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
    return unsupported("cublasLtMatmulDescCreate", "another compute or scale type than f32");
  return create("cublasLtMatmulDescCreate", to, Operation{});
}
cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t desc) {
  delete reinterpret_cast<const Operation*>(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  constexpr const char* call = "cublasLtMatmulDescSetAttribute";
  auto* operation = const_cast<Operation*>(as<Operation>(desc));
  if (!operation) return refuse(call, "not a matmul description");
  if (attribute != CUBLASLT_MATMUL_DESC_TRANSA && attribute != CUBLASLT_MATMUL_DESC_TRANSB)
    return unsupported(call, "attribute " + std::to_string(attribute));
  if (!value || bytes != sizeof(cublasOperation_t)) return refuse(call, "a value of another size");
  cublasOperation_t transpose;
  std::memcpy(&transpose, value, bytes);
  if (transpose != CUBLAS_OP_N && transpose != CUBLAS_OP_T) return unsupported(call, "another transposition");
  (attribute == CUBLASLT_MATMUL_DESC_TRANSA ? operation->a : operation->b) = transpose;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* to, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
  constexpr const char* call = "cublasLtMatrixLayoutCreate";
  if (type != CUDA_R_32F && type != CUDA_R_16BF) return unsupported(call, "another type than f32 and bf16");
  if (rows == 0 || cols == 0 || ld < static_cast<int64_t>(rows))
    return refuse(
        call, std::to_string(rows) + " × " + std::to_string(cols) + " with leading dimension " + std::to_string(ld));
  return create(call, to, Layout{0x6c61796f7574, type, rows, cols, ld});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<const Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* to) {
  return create("cublasLtMatmulPreferenceCreate", to, Preference{});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<const Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  constexpr const char* call = "cublasLtMatmulPreferenceSetAttribute";
  auto* preference = const_cast<Preference*>(as<Preference>(handle));
  if (!preference || !value) return refuse(call, "not a preference, or no value");
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    if (bytes != sizeof(uint64_t)) return refuse(call, "a value of another size");
    std::memcpy(&preference->workspace, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  const int place = attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES   ? 0
                    : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES ? 1
                    : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES ? 2
                    : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES ? 3
                                                                              : -1;
  if (place < 0) return unsupported(call, "attribute " + std::to_string(attribute));
  if (bytes != sizeof(uint32_t)) return refuse(call, "a value of another size");
  std::memcpy(&preference->alignment[place], value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a_desc, cublasLtMatrixLayout_t b_desc,
                                              cublasLtMatrixLayout_t c_desc, cublasLtMatrixLayout_t d_desc,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  constexpr const char* call = "cublasLtMatmulAlgoGetHeuristic";
  const auto* operation = as<Operation>(desc);
  const auto *a = as<Layout>(a_desc), *b = as<Layout>(b_desc), *c = as<Layout>(c_desc);
  const auto* wanted = as<Preference>(preference);
  if (!handle || !operation || !a || !b || !c || !wanted || requested < 1 || !results || !found)
    return refuse(call, "a null or foreign argument");
  if (c_desc != d_desc) return unsupported(call, "c and d of different layouts");
  Sizes sizes;
  if (!sizes_of(*operation, *a, *b, *c, sizes)) return refuse(call, "layouts that do not fit each other");
  if (!types_fit(*a, *b, *c)) return unsupported(call, "this combination of types");
  Algorithm algorithm;
  std::memcpy(algorithm.alignment, wanted->alignment, sizeof algorithm.alignment);
  algorithm.workspace = wanted->workspace;
  algorithm.key = key_of(*operation, *a, *b, *c);
  results[0] = {};
  std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
  results[0].workspaceSize = wanted->workspace;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_desc, const void* b, cublasLtMatrixLayout_t b_desc,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_desc, void* d,
                              cublasLtMatrixLayout_t d_desc, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  constexpr const char* call = "cublasLtMatmul";
  const auto* operation = as<Operation>(desc);
  const auto *la = as<Layout>(a_desc), *lb = as<Layout>(b_desc), *lc = as<Layout>(c_desc);
  const auto* algorithm = reinterpret_cast<const Algorithm*>(algo);
  if (!handle || !operation || !la || !lb || !lc || !alpha || !beta || !a || !b || !c || !d)
    return refuse(call, "a null or foreign argument");
  if (c != d || c_desc != d_desc) return unsupported(call, "a result elsewhere than c");
  if (!algorithm || algorithm->magic != Algorithm{}.magic || algorithm->key != key_of(*operation, *la, *lb, *lc))
    return refuse(call, "an algorithm that was not chosen for this product");
  if (is_device_address(reinterpret_cast<uint64_t>(alpha)) || is_device_address(reinterpret_cast<uint64_t>(beta)))
    return refuse(call, "alpha or beta in device memory, where host pointers are meant");
  if (workspace_bytes < algorithm->workspace || (workspace_bytes && !workspace) ||
      reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
    return refuse(call, "a workspace that is smaller than the algorithm's, or not 256-byte aligned");
  const void* pointers[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (reinterpret_cast<uintptr_t>(pointers[i]) % algorithm->alignment[i] != 0)
      return refuse(call, "operand " + std::to_string(i) + " is aligned less than its algorithm was told");
  Call product{*operation,
               *la,
               *lb,
               *lc,
               *static_cast<const float*>(alpha),
               *static_cast<const float*>(beta),
               reinterpret_cast<uint64_t>(a),
               reinterpret_cast<uint64_t>(b),
               reinterpret_cast<uint64_t>(c)};
  Sizes sizes;
  sizes_of(*operation, *la, *lb, *lc, sizes);
  count_call(call, 2 * sizes.m * sizes.n * sizes.k);
  enqueue(stream, call, [product, sizes](WorkId work) {
    if (record(product, work)) multiply(product, sizes);
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"

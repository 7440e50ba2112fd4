// gemm by cuBLASLt. It counts in columns: a row-major [r, c] is its column-major c × r, so that cᵀ = op(b)ᵀ · op(a)ᵀ is
// asked for, with b first.
#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <map>

#include "kernels/gemm.h"
#include "runtime/memory.h"

namespace notellm::gpu {
namespace {

constexpr int64_t workspace_bytes = int64_t{32} << 20;  // what cuBLASLt recommends for sm_90; sm_80 needs less

void check_status(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(ErrorKind::device, "{}: {}", what, cublasLtGetStatusString(status));
}

cudaDataType_t data_type(DType dtype) { return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF; }

// The largest power of two up to 16 bytes, the most that an algorithm asks for, of which the address is a multiple.
uint32_t alignment(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<uint32_t>(std::min<uintptr_t>(16, address & -address));
}

struct Shape {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  DType in, out;
  uint32_t align_a, align_b, align_c;
  auto operator<=>(const Shape&) const = default;
};

// A description of cuBLASLt's, destroyed with its owner.
template <class T, cublasStatus_t (*destroy)(T)>
struct Owner {
  T value = nullptr;
  Owner() = default;
  Owner(const Owner&) = delete;
  ~Owner() {
    if (value) destroy(value);
  }
};

struct Product {
  Owner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> operation;
  Owner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> a, b, c;
  cublasLtMatmulAlgo_t algorithm;
};

class Library {
 public:
  Library() : workspace_(workspace_bytes, Memory::device) {
    check_status(cublasLtCreate(&handle_.value), "cublasLtCreate");
  }

  void run(Stream& stream, const Shape& shape, const void* a, const void* b, void* c, bool accumulate) {
    const Product& p = find(shape);
    const float one = 1, old = accumulate ? 1 : 0;
    check_status(cublasLtMatmul(handle_.value, p.operation.value, &one, b, p.b.value, a, p.a.value, &old, c, p.c.value,
                                c, p.c.value, &p.algorithm, workspace_.data(), workspace_bytes,
                                static_cast<cudaStream_t>(stream.native())),
                 "cublasLtMatmul");
  }

 private:
  const Product& find(const Shape& shape) {
    if (const auto found = products_.find(shape); found != products_.end()) return found->second;
    if (products_.size() >= most_products) products_.clear();  // batches of ever new lengths must not grow memory
    Product& product = products_[shape];
    try {
      describe_product(shape, product);
      choose_algorithm(shape, product);
    } catch (...) {
      products_.erase(shape);
      throw;
    }
    return product;
  }

  static void describe_product(const Shape& s, Product& p) {
    check_status(cublasLtMatmulDescCreate(&p.operation.value, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                 "cublasLtMatmulDescCreate");
    // op(b)ᵀ is n × k: as it lies there when b is [k, n], transposed when b is [n, k].
    const cublasOperation_t first = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_status(cublasLtMatmulDescSetAttribute(p.operation.value, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
                 "cublasLtMatmulDescSetAttribute");
    check_status(cublasLtMatmulDescSetAttribute(p.operation.value, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
                 "cublasLtMatmulDescSetAttribute");
    const auto layout = [](cublasLtMatrixLayout_t& to, DType dtype, int64_t rows, int64_t cols) {
      check_status(cublasLtMatrixLayoutCreate(&to, data_type(dtype), static_cast<uint64_t>(cols),
                                              static_cast<uint64_t>(rows), cols),
                   "cublasLtMatrixLayoutCreate");
    };
    layout(p.a.value, s.in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k);
    layout(p.b.value, s.in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n);
    layout(p.c.value, s.out, s.m, s.n);
  }

  void choose_algorithm(const Shape& s, Product& p) {
    Owner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
    check_status(cublasLtMatmulPreferenceCreate(&preference.value), "cublasLtMatmulPreferenceCreate");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      check_status(cublasLtMatmulPreferenceSetAttribute(preference.value, what, &value, sizeof value),
                   "cublasLtMatmulPreferenceSetAttribute");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.align_b);  // theirs come in the other order
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.align_a);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.align_c);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.align_c);
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    check_status(cublasLtMatmulAlgoGetHeuristic(handle_.value, p.operation.value, p.b.value, p.a.value, p.c.value,
                                                p.c.value, preference.value, 1, &best, &found),
                 "cublasLtMatmulAlgoGetHeuristic");
    if (found == 0)
      fail(ErrorKind::device, "cuBLASLt has no algorithm for {} [{}, {}] times [{}, {}] into {}", name_of(s.in), s.m,
           s.k, s.k, s.n, name_of(s.out));
    p.algorithm = best.algo;
  }

  static constexpr size_t most_products = 512;
  Owner<cublasLtHandle_t, cublasLtDestroy> handle_;
  Buffer workspace_;
  std::map<Shape, Product> products_;
};

}  // namespace

void gemm(Stream& stream, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, Tensor c, bool accumulate) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  if (!stream.library()) stream.library() = std::make_shared<Library>();
  const Shape shape{c.rows(),          c.cols(),          ta ? a.rows() : a.cols(), ta, tb, a.dtype, c.dtype,
                    alignment(a.data), alignment(b.data), alignment(c.data)};
  static_cast<Library*>(stream.library().get())->run(stream, shape, a.data, b.data, c.data, accumulate);
}

}  // namespace notellm::gpu

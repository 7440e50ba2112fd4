#include "kernels/gemm.h"

#include <algorithm>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>

#include "kernels/convert.h"
#include "kernels/gemm_few_rows.h"
#include "kernels/gemm_panels.h"
#include "runtime/memory.h"

namespace notellm {
namespace {

using Dt = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;

struct Shape {
  int64_t m, k, n;
  bool transpose_a, transpose_b, accumulate;
  DType in, out;
  auto operator<=>(const Shape&) const = default;
};

Dt dnnl_type(DType dtype) { return dtype == DType::bf16 ? Dt::bf16 : Dt::f32; }

// bf16 dot products run at twice the f32 rate or better with AMX, and with AVX512-BF16 on AMD; Intel's AVX512-BF16 was
// measured at half the f32 rate (Emerald Rapids), and without either oneDNN emulates them. A rule rather than a
// measurement at start-up, because the choice changes the order of sums.
bool bf16_is_fast() {
#if defined(__x86_64__)
  static const bool fast = [] {
    __builtin_cpu_init();
    return gemm_has_tiles() || (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd"));
  }();
  return fast;
#else
  return false;
#endif
}

// Grow-only memory of one thread, so that the steady state allocates nothing.
struct Scratch {
  Buffer buffer;
  Tensor take(DType dtype, int64_t size) {
    if (buffer.bytes() < size * size_of(dtype)) buffer = Buffer(size * size_of(dtype));
    return Tensor(buffer.data(), dtype, {size});
  }
};

// oneDNN's primitives of one thread, made once per shape.
class Primitives {
 public:
  Primitives() { dnnl::set_primitive_cache_capacity(0); }  // this is the cache: a second one would only hold memory

  void run(const Shape& shape, const Tensor& a, const Tensor& b, const Tensor& c) {
    auto found = entries_.find(shape);
    if (found == entries_.end()) found = entries_.emplace(shape, make(shape)).first;
    Entry& entry = found->second;
    Tensor scratch = scratch_.take(DType::f32, (entry.scratch_bytes + 3) / 4);
    entry.a.set_data_handle(a.data);
    entry.b.set_data_handle(b.data);
    entry.c.set_data_handle(c.data);
    entry.scratch.set_data_handle(scratch.data);
    entry.primitive.execute(stream_, {{DNNL_ARG_SRC, entry.a},
                                      {DNNL_ARG_WEIGHTS, entry.b},
                                      {DNNL_ARG_DST, entry.c},
                                      {DNNL_ARG_SCRATCHPAD, entry.scratch}});
  }

 private:
  struct Entry {
    dnnl::matmul primitive;
    dnnl::memory a, b, c, scratch;
    int64_t scratch_bytes;
  };

  Entry make(const Shape& s) {
    if (entries_.size() >= most_entries) entries_.clear();  // batches of ever new lengths must not grow memory
    const dnnl::memory::desc a({s.m, s.k}, dnnl_type(s.in), s.transpose_a ? Tag::ba : Tag::ab);
    const dnnl::memory::desc b({s.k, s.n}, dnnl_type(s.in), s.transpose_b ? Tag::ba : Tag::ab);
    const dnnl::memory::desc c({s.m, s.n}, dnnl_type(s.out), Tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (s.accumulate) {
      dnnl::post_ops add;
      add.append_sum(1.0f);
      attributes.set_post_ops(add);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, engine_);
    const auto scratch = description.scratchpad_desc();
    auto view = [&](const dnnl::memory::desc& d) { return dnnl::memory(d, engine_, nullptr); };
    return {
        dnnl::matmul(description), view(a), view(b), view(c), view(scratch), static_cast<int64_t>(scratch.get_size())};
  }

  static constexpr size_t most_entries = 512;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::map<Shape, Entry> entries_;
  Scratch scratch_;
};

thread_local Primitives primitives;
thread_local Scratch wide_a, wide_b, wide_c;

Tensor widen(Stream& stream, const Tensor& narrow, Scratch& scratch) {
  const Tensor wide = scratch.take(DType::f32, narrow.size());
  convert(stream, narrow, wide);
  return wide;
}

}  // namespace

// oneDNN has asked the kernel for the tiles' state when it names them.
bool gemm_has_tiles() {
#if defined(__x86_64__)
  static const bool has = dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_amx;
  return has;
#else
  return false;
#endif
}

bool gemm_widens_bf16() { return !bf16_is_fast(); }

void gemm(Stream& stream, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, Tensor c, bool accumulate) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const int64_t m = ta ? a.cols() : a.rows(), k = ta ? a.rows() : a.cols();
  const int64_t n = tb ? b.rows() : b.cols(), k_of_b = tb ? b.cols() : b.rows();
  NOTELLM_CHECK(k == k_of_b && c.rows() == m && c.cols() == n, "gemm: {}{} times {}{} into {}", describe(a),
                ta ? "ᵀ" : "", describe(b), tb ? "ᵀ" : "", describe(c));
  const bool panels = a.dtype == DType::bf16 && !ta && b.dtype == DType::bf16_panels && tb && !stream.on_gpu();
  NOTELLM_CHECK(panels || (a.dtype == b.dtype && (a.dtype == DType::f32 || a.dtype == DType::bf16)),
                "gemm: {} times {}", describe(a), describe(b));
  NOTELLM_CHECK(c.dtype == DType::f32 || (c.dtype == DType::bf16 && a.dtype == DType::bf16), "gemm: {} into {}",
                describe(a), describe(c));
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate) set_zero(stream, c);
    return;
  }
  if constexpr (cuda_built)
    if (stream.on_gpu()) return gpu::gemm(stream, a, transpose_a, b, transpose_b, c, accumulate);
  if (panels) return gemm_panels(a, b, c, accumulate);
  const bool widens = a.dtype == DType::bf16 && gemm_widens_bf16();
  if (m <= (a.dtype == DType::bf16 ? few_rows_bf16 : few_rows) && tb && !ta)
    return gemm_few_rows(a, b, c, accumulate, !widens);
  if (!widens) {
    primitives.run({m, k, n, ta, tb, accumulate, a.dtype, c.dtype}, a, b, c);
    return;
  }
  const Shape wide_shape{m, k, n, ta, tb, accumulate, DType::f32, DType::f32};
  if (c.dtype == DType::f32) {
    primitives.run(wide_shape, widen(stream, a, wide_a), widen(stream, b, wide_b), c);
    return;
  }
  const Tensor wide_result = accumulate ? widen(stream, c, wide_c) : wide_c.take(DType::f32, c.size());
  primitives.run(wide_shape, widen(stream, a, wide_a), widen(stream, b, wide_b), wide_result);
  convert(stream, wide_result, c);
}

}  // namespace notellm

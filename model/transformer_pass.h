// What the two sources of the transformer share.
#pragma once

#include "kernels/gemm.h"
#include "model/transformer.h"

namespace notellm {

struct Transformer::Pass {
  Stream& stream;
  const Weights& weights;
  const ModelInput& input;
  Arena& arena;
  const PassHooks& hooks;
  const Weights* gradients = nullptr;

  Tensor allocate(DType dtype, std::initializer_list<int64_t> sizes) const { return arena.allocate(dtype, sizes); }
  void begins(int layer) const {
    if (hooks.begins) hooks.begins(layer);
  }
};

inline constexpr Transpose as_is = Transpose::no, transposed = Transpose::yes;

// [rows, heads, head_dim] as a matrix.
inline Tensor matrix(const Tensor& t) { return t.reshape({t.rows(), t.cols()}); }

template <class Write>
Tensor Transformer::gathered(const Pass& pass, const char* name, Rows tile, const Write& write) const {
  const Tensor all = pass.allocate(compute_, {tile.count(), config_.dim});
  write(share_.own_part(all));
  share_.gather(pass.stream, tensor_, name, all);
  return all;
}

}  // namespace notellm

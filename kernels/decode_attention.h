// Attention of one new token of each of several sequences, over the keys and values that a cache keeps of them.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// cache[place[i], :, :] = kv[i, :, :], then
// o[i,h,:] = Σ_j p_ij · v[j,g,:],   p_ij = softmax_j(scale · q[i,h,:]·k[j,g,:]),   g = h / (heads / kv_heads)
// j over the cache's rows in the runs of query i, and place[i].
//
//   q, o   [queries, heads, head_dim]       f32 | bf16
//   kv     [queries, 2·kv_heads, head_dim]  the same dtype: k heads, then v heads
//   cache  [rows, 2·kv_heads, head_dim]     the same dtype
//   runs   [queries, runs, 2]  i32  begin and end of rows, each run perhaps empty
//   place  [queries]           i32  distinct, and in no run
// o may be q.
//
// scale = 1/sqrt(head_dim). Softmax and sums in f32; each query's and head's result does not depend on what else is
// computed, to the bit. Allocates nothing.
// Throws Error: shape or dtype mismatch; heads not a multiple of kv_heads; on the CPU, rows outside the cache; on CUDA,
// head_dim above 256.
void decode_attention(Stream& stream, Tensor q, Tensor kv, Tensor cache, Tensor runs, Tensor place, Tensor o);

namespace gpu {  // after the checks
void decode_attention(Stream& stream, Tensor q, Tensor kv, Tensor cache, Tensor runs, Tensor place, Tensor o);
}

}  // namespace notellm

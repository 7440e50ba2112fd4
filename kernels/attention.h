// Causal attention over packed segments with shared prefixes and grouped queries.
#pragma once

#include "kernels/attention_plan.h"
#include "runtime/device.h"

namespace notellm {

// o[i,h,:] = Σ_j p_ij · v[j,g,:],   p_ij = softmax_j(scale · q[i,h,:]·k[j,g,:]),   g = h / (heads / kv_heads)
// j over the prefix of i's segment, then the segment's own tokens up to the query's own, itself included (the plan).
//
//   q, o  [queries, heads, head_dim]           f32 | bf16
//   kv    [tokens, 2·kv_heads, head_dim]       the same dtype: k heads, then v heads
//   lse   [queries, heads]  f32: log Σ_j exp(scale·q·k), kept for the backward pass
//
// scale = 1/sqrt(head_dim). Softmax and sums in f32. On CUDA bf16 products are the tensor cores' for head_dim 64 and
// 128, with P rounded to bf16 for them, and in the backward pass dS. Rows of o whose query belongs to no segment are
// not written. A NaN in a segment's or its prefix's keys or values may reach all of the segment's queries, also those
// before it. Throws Error: shape or dtype mismatch, also with the plan; heads not a multiple of kv_heads; on CUDA, a
// plan without device tables.
void attention(Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv, Tensor o, Tensor lse);

// The gradients, with P recomputed from lse (FlashAttention-2, arXiv 2307.08691):
//   D_i  = Σ_c do·o,          dS_ij = p_ij (do_i·v_j − D_i)
//   dq_i = scale Σ_j dS_ij k_j,  dk_j = scale Σ_i dS_ij q_i,  dv_j = Σ_i p_ij do_i
//
//   d_o        as o
//   dq         as q, overwritten; 0 where a query belongs to no segment
//   dkv        as kv, overwritten; 0 for tokens that nobody sees
//   workspace  f32, at least attention_workspace(…) elements
//
// A prefix gets the sum over the segments that use it, in f32 and in a fixed order, first within fixed chunks of them:
// the same bits for any number of threads, and on each backend whenever repeated. Throws Error: as attention; d_o, dq,
// dkv or workspace of another shape or dtype, or too small.
void attention_backward(Stream& stream, const AttentionPlan& plan, Tensor d_o, Tensor q, Tensor kv, Tensor o,
                        Tensor lse, Tensor dq, Tensor dkv, Tensor workspace);
// Elements of workspace on this stream's device, for q and kv of these shapes: a pure function of plan and shapes. On
// CUDA about tokens · 2·kv_heads·head_dim at most, where prefixes do not overlap and heads / kv_heads <= head_dim.
// Throws Error: as attention for q and kv.
int64_t attention_workspace(const Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv);

namespace gpu {  // after the checks; all tensors begin at a multiple of 16 bytes
void attention(Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv, Tensor o, Tensor lse);
void attention_backward(Stream& stream, const AttentionPlan& plan, Tensor d_o, Tensor q, Tensor kv, Tensor o,
                        Tensor lse, Tensor dq, Tensor dkv, Tensor workspace);
int64_t attention_workspace(const AttentionPlan& plan, Tensor q, Tensor kv);
}  // namespace gpu

}  // namespace notellm

// Causal attention over packed segments with shared prefixes and grouped queries.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// What attends to what. Keys stand for all tokens of the batch; queries may be a subset of them (the last layer needs
// only the rows that something reads).
struct AttentionSegment {
  int32_t begin, end;                // tokens of the segment; no token is in two segments
  int32_t prefix_begin, prefix_end;  // tokens of its prefix, which all its queries see; empty: begin = end
  int32_t query_begin, query_end;    // queries of the segment, perhaps none; no query is in two segments
};

// o[i,h,:] = Σ_j p_ij · v[j,g,:],   p_ij = softmax_j(scale · q[i,h,:]·k[j,g,:]),   g = h / (heads / kv_heads)
// j over the prefix of i's segment, then the segment's own tokens up to query_tokens[i], itself included.
//
//   q, o          [queries, heads, head_dim]           f32 | bf16
//   kv            [tokens, 2·kv_heads, head_dim]       the same dtype: k heads, then v heads
//   query_tokens  [queries]  i32: token of each query, ascending within a segment, inside the segment
//   lse           [queries, heads]  f32: log Σ_j exp(scale·q·k), kept for the backward pass
//
// scale = 1/sqrt(head_dim). Softmax and sums in f32. Rows of o whose query belongs to no segment are not written.
// A NaN in a segment's or its prefix's keys or values may reach all of the segment's queries, also those before it.
// Throws Error: shape or dtype mismatch; heads not a multiple of kv_heads; a segment or prefix outside the tokens;
// segments that share tokens or queries; query_tokens that are not ascending tokens of their segment.
void attention(Stream& stream, std::span<const AttentionSegment> segments, Tensor q, Tensor kv, Tensor query_tokens,
               Tensor o, Tensor lse);

// The gradients, with P recomputed from lse (FlashAttention-2, arXiv 2307.08691):
//   D_i  = Σ_c do·o,          dS_ij = p_ij (do_i·v_j − D_i)
//   dq_i = scale Σ_j dS_ij k_j,  dk_j = scale Σ_i dS_ij q_i,  dv_j = Σ_i p_ij do_i
//
//   d_o        as o
//   dq         as q, overwritten; 0 where a query belongs to no segment
//   dkv        as kv, overwritten; 0 for tokens that nobody sees
//   workspace  f32, at least attention_workspace(…) elements
//
// A prefix gets the sum over the segments that use it, in f32 and in the order of segments, first within fixed chunks
// of them: the same bits for any number of threads. Throws Error: as attention; d_o, dq, dkv or workspace of another
// shape or dtype, or too small.
void attention_backward(Stream& stream, std::span<const AttentionSegment> segments, Tensor d_o, Tensor q, Tensor kv,
                        Tensor query_tokens, Tensor o, Tensor lse, Tensor dq, Tensor dkv, Tensor workspace);
// Elements of workspace for segments like these: a pure function of the segments and the shape of kv, not of threads.
int64_t attention_workspace(std::span<const AttentionSegment> segments, Tensor kv);

}  // namespace notellm

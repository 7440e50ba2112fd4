// Attention by cuDNN instead of the kernels of attention.h: the same formulas, forward and backward. bf16 on CUDA only.
//
// cuDNN 9.19 knows no shared prefixes and no subset of queries: every segment is a sequence of its own, all of whose
// tokens are queries. Its one-operation SDPA descriptors have no causal mask (that came with 9.21), so a graph of
// products, masks and reductions is given to it, which it recognises as SDPA and compiles to one kernel. Sequences lie
// packed behind each other (ragged offsets).
//
// The backward pass is asked for without atomics, and only engines are taken that cuDNN does not note as
// nondeterministic: the same bits again. For packed sequences it has such a one from sm_90 on, not for sm_80.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/attention_plan.h"
#include "runtime/device.h"

namespace notellm {

struct CudnnHeads {
  int64_t heads, kv_heads, head_dim;
};

// The sequences of a batch as cuDNN wants them. As AttentionPlan: after set() the owner puts a copy of tables() into
// device memory and gives it by set_device_tables().
class CudnnSequences {
 public:
  // The segments with tokens, in the order of their tokens. Throws Error(usage): a segment with a prefix; Error: they
  // are not all the tokens 0 … tokens − 1 in order; offsets of k and v beyond 2^31 elements.
  void set(std::span<const AttentionSegment> segments, int64_t tokens, const CudnnHeads& heads);

  int64_t tokens() const { return tokens_; }
  const CudnnHeads& heads() const { return heads_; }
  // What kernels are built for: sequences and tokens of the longest, rounded up. Sequences beyond the last are empty.
  int64_t sequences() const { return sequences_; }
  int64_t longest() const { return longest_; }

  Tensor tables() const;                  // [n] i32 in host memory: lengths, then offsets of q, of kv, of lse
  void set_device_tables(Tensor tables);  // its copy; throws Error unless it is that, of the same size
  // Each table in device memory, 16-byte aligned. Throws Error unless they have been set.
  const int32_t* device_table(int i) const;

 private:
  int64_t table_size() const;
  int64_t tokens_ = 0, sequences_ = 0, longest_ = 0;
  CudnnHeads heads_ = {};
  std::vector<int32_t> tables_;
  Tensor device_tables_;
};

// The library's handle, and the kernels that it has built: one a pass and class of shapes, which takes about a second.
class CudnnAttention {
 public:
  // Throws Error(usage): another dtype than bf16; head_dim no multiple of 8 or beyond 128. Error(device): a GPU below
  // sm_90; cuDNN cannot be used.
  CudnnAttention(DType compute, const CudnnHeads& heads);

  // q, kv, o, lse, d_o, dq, dkv as in attention.h, all queries; every element of o, lse, dq and dkv is written. All
  // begin at multiples of 16 bytes. workspace: f32, at least workspace(…) elements of the same pass. Throws Error:
  // shape or dtype mismatch; Error(device): no kernel for these shapes.
  void forward(Stream& stream, const CudnnSequences& sequences, Tensor q, Tensor kv, Tensor o, Tensor lse,
               Tensor workspace);
  void backward(Stream& stream, const CudnnSequences& sequences, Tensor d_o, Tensor q, Tensor kv, Tensor o, Tensor lse,
                Tensor dq, Tensor dkv, Tensor workspace);

  // Elements of f32: for backward about half of sequences · heads · longest · (longest + 2 · head_dim).
  int64_t workspace(const CudnnSequences& sequences, bool backward);

 private:
  struct Library;
  std::shared_ptr<Library> library_;
};

}  // namespace notellm

// Attention on CUDA: which kernels do it, and the sum of what several blocks found for the same keys.
#include <climits>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/attention_cuda.cuh"

namespace notellm::gpu {
namespace {

constexpr int sum_threads = 256;

// dkv of keys of several items: a thread has an element, and adds the items in order. A block has a row, or a part.
template <class T>
__global__ void __launch_bounds__(sum_threads) attention_key_sum_kernel(const AttentionArguments<T> a) {
  const KeySum sum = a.key_sums[blockIdx.x / tile_size];
  const int row = blockIdx.x % tile_size, keys = sum.key_end - sum.key_begin;
  const int64_t width = a.kv_width(), column = int64_t{blockIdx.y} * sum_threads + threadIdx.x;
  if (row >= keys || column >= width) return;
  const float* from = a.partials + (sum.row + row) * width + column;
  float total = 0;
  for (int i = 0; i < sum.items; ++i, from += keys * width) total += *from;
  a.dkv[(sum.key_begin + row) * width + column] = from_float<T>(total);
}

template <class T>
AttentionArguments<T> arguments(const AttentionPlan& plan, const Tensor& q, const Tensor& kv, const Tensor& o,
                                const Tensor& lse) {
  NOTELLM_CHECK(q.rows() * q.shape[1] <= INT_MAX && plan.gpu().query_tile_count * q.shape[1] <= INT_MAX &&
                    int64_t{tile_size} * plan.gpu().key_item_count * kv.shape[1] <= INT_MAX,
                "{} with {} tokens is too much for one call of attention", describe(q), kv.rows());
  const GpuPlan& work = plan.gpu();
  const int32_t* tables = plan.device_tables();
  AttentionArguments<T> a = {};
  a.query_tokens = tables;
  a.lists = tables + work.lists;
  a.query_tiles = reinterpret_cast<const QueryTile*>(tables + work.query_tiles);
  a.key_items = reinterpret_cast<const KeyItem*>(tables + work.key_items);
  a.key_sums = reinterpret_cast<const KeySum*>(tables + work.key_sums);
  a.heads = static_cast<int>(q.shape[1]);
  a.kv_heads = static_cast<int>(kv.shape[1] / 2);
  a.group = a.heads / a.kv_heads;
  a.head_dim = static_cast<int>(q.shape[2]);
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)));
  a.q = q.as<T>();
  a.kv = kv.as<T>();
  a.o = o.as<T>();
  a.lse = lse.as<float>();
  return a;
}

bool is_fast(const Tensor& q) { return q.dtype == DType::bf16 && (q.shape[2] == 64 || q.shape[2] == 128); }

template <class T>
void sum_keys(Stream& stream, const AttentionArguments<T>& a, const GpuPlan& plan) {
  if (plan.key_sum_count == 0) return;
  const int64_t width = int64_t{2} * a.kv_heads * a.head_dim;
  const dim3 blocks(plan.key_sum_count * tile_size, static_cast<unsigned>(ceil_div(width, sum_threads)));
  attention_key_sum_kernel<T><<<blocks, sum_threads, 0, native(stream)>>>(a);
  check_launch("attention_key_sum_kernel");
}

// Where the partial sums begin in the workspace, behind D.
int64_t partials_at(const Tensor& q) { return ceil_div(q.rows() * q.shape[1], 4) * 4; }

template <class T>
void backward(Stream& stream, const AttentionPlan& plan, Tensor d_o, Tensor q, Tensor kv, Tensor o, Tensor lse,
              Tensor dq, Tensor dkv, Tensor workspace) {
  AttentionArguments<T> a = arguments<T>(plan, q, kv, o, lse);
  a.d_o = d_o.as<T>();
  a.d = workspace.as<float>();
  a.partials = a.d + partials_at(q);
  a.dq = dq.as<T>();
  a.dkv = dkv.as<T>();
  if constexpr (std::is_same_v<T, bf16>)
    if (is_fast(q)) {
      attention_backward_fast(stream, a, plan.gpu());
      return sum_keys(stream, a, plan.gpu());
    }
  attention_backward_plain(stream, a, plan.gpu());
  sum_keys(stream, a, plan.gpu());
}

}  // namespace

void attention(Stream& stream, const AttentionPlan& plan, Tensor q, Tensor kv, Tensor o, Tensor lse) {
  if (plan.queries() == 0) return;
  if (is_fast(q))
    attention_fast(stream, arguments<bf16>(plan, q, kv, o, lse), plan.gpu());
  else if (q.dtype == DType::bf16)
    attention_plain(stream, arguments<bf16>(plan, q, kv, o, lse), plan.gpu());
  else
    attention_plain(stream, arguments<float>(plan, q, kv, o, lse), plan.gpu());
}

void attention_backward(Stream& stream, const AttentionPlan& plan, Tensor d_o, Tensor q, Tensor kv, Tensor o,
                        Tensor lse, Tensor dq, Tensor dkv, Tensor workspace) {
  if (plan.tokens() == 0) return;
  if (q.dtype == DType::bf16)
    backward<bf16>(stream, plan, d_o, q, kv, o, lse, dq, dkv, workspace);
  else
    backward<float>(stream, plan, d_o, q, kv, o, lse, dq, dkv, workspace);
}

int64_t attention_workspace(const AttentionPlan& plan, Tensor q, Tensor kv) {
  return partials_at(q) + plan.gpu().rows * kv.cols();
}

}  // namespace notellm::gpu

#include "kernels/attention_cudnn.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <compare>
#include <limits>
#include <map>

#include "kernels/checks.h"
#include "kernels/cudnn_graph.h"
#include "runtime/gpu.h"

namespace notellm {
namespace {

using gpu::cudnn::dense;
using gpu::cudnn::Descriptor;
using gpu::cudnn::Dims;
using gpu::cudnn::Graph;
using gpu::cudnn::Plan;
using Node = Graph::Tensor;

constexpr int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

struct Shape {
  bool backward;
  int64_t sequences, longest, heads, kv_heads, head_dim;
  auto operator<=>(const Shape&) const = default;
};

// The tensors with memory, and the graph between them.
struct SdpaGraph {
  Graph graph;
  Node lengths, q_offsets, kv_offsets, lse_offsets;
  Node q, k, v, o, lse;
  Node scale, padding_value, mask_value;
  Node d_o, dq, dk, dv, row_sum, one;  // backward

  explicit SdpaGraph(const Shape& shape);

 private:
  // [sequences, heads, rows, columns] of a packed matrix of `width` columns; transposed: columns before rows.
  Node packed(int64_t heads, int64_t width, Node offsets, bool transposed = false) {
    const int64_t d = s.head_dim, n = s.longest;
    if (transposed)
      return graph.data(CUDNN_DATA_BFLOAT16, {s.sequences, heads, d, n}, {n * width, d, 1, width}, offsets);
    return graph.data(CUDNN_DATA_BFLOAT16, {s.sequences, heads, n, d}, {n * width, d, width, 1}, offsets);
  }
  Node temporary(cudnnDataType_t type, const Dims& dims) { return graph.temporary(type, dims, dense(dims)); }
  Node compare(cudnnPointwiseMode_t mode, Node a, Node b) {
    return graph.pointwise(mode, a, b, Graph::none, CUDNN_DATA_BOOLEAN, CUDNN_DATA_BOOLEAN);
  }
  Node scaled_scores();
  Node mask_padding(Node x);
  Node mask_future(Node x);
  void add_forward();
  void add_backward();
  void key_gradient(Node weights, Node of, Node to);

  Shape s;
  Dims scores, row;
};

SdpaGraph::SdpaGraph(const Shape& shape)
    : s(shape), scores{s.sequences, s.heads, s.longest, s.longest}, row{s.sequences, s.heads, s.longest, 1} {
  const Dims ones{1, 1, 1, 1}, offsets{s.sequences + 1, 1, 1, 1};
  lengths = graph.data(CUDNN_DATA_INT32, {s.sequences, 1, 1, 1}, ones);
  q_offsets = graph.data(CUDNN_DATA_INT32, offsets, ones);
  kv_offsets = graph.data(CUDNN_DATA_INT32, offsets, ones);
  lse_offsets = graph.data(CUDNN_DATA_INT32, offsets, ones);
  const int64_t q_width = s.heads * s.head_dim, kv_width = 2 * s.kv_heads * s.head_dim;
  q = packed(s.heads, q_width, q_offsets);
  k = packed(s.kv_heads, kv_width, kv_offsets, true);
  v = packed(s.kv_heads, kv_width, kv_offsets, s.backward);
  o = packed(s.heads, q_width, q_offsets);
  lse = graph.data(CUDNN_DATA_FLOAT, row, {s.longest * s.heads, 1, s.heads, 1}, lse_offsets);
  scale = graph.scalar();
  padding_value = graph.scalar();
  mask_value = graph.scalar();
  if (!s.backward) {
    add_forward();
    return;
  }
  d_o = packed(s.heads, q_width, q_offsets);
  dq = packed(s.heads, q_width, q_offsets);
  dk = packed(s.kv_heads, kv_width, kv_offsets);
  dv = packed(s.kv_heads, kv_width, kv_offsets);
  row_sum = graph.data(CUDNN_DATA_FLOAT, row, dense(row));
  one = graph.scalar();
  add_backward();
}

Node SdpaGraph::scaled_scores() {
  const Node products = temporary(CUDNN_DATA_FLOAT, scores);
  graph.matmul(q, k, products, {.m = lengths, .n = lengths});
  return graph.pointwise(CUDNN_POINTWISE_MUL, products, scale);
}

// −∞ beyond the sequence's length.
Node SdpaGraph::mask_padding(Node x) {
  const Node i = graph.index(x, 2, CUDNN_DATA_INT32), j = graph.index(x, 3, CUDNN_DATA_INT32);
  const Node row_inside = compare(CUDNN_POINTWISE_CMP_LT, i, lengths);
  const Node column_inside = compare(CUDNN_POINTWISE_CMP_LT, j, lengths);
  return graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT, x, padding_value,
                         compare(CUDNN_POINTWISE_LOGICAL_AND, row_inside, column_inside));
}
// −∞ where the key stands behind the query.
Node SdpaGraph::mask_future(Node x) {
  const Node i = graph.index(x, 2, CUDNN_DATA_FLOAT), j = graph.index(x, 3, CUDNN_DATA_FLOAT);
  return graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT, x, mask_value, compare(CUDNN_POINTWISE_CMP_GE, i, j));
}

// The order of operations here and below is the one that cuDNN recognises.
void SdpaGraph::add_forward() {
  const Node x = mask_future(mask_padding(scaled_scores()));
  const Node max = temporary(CUDNN_DATA_FLOAT, row), sum = temporary(CUDNN_DATA_FLOAT, row);
  graph.reduce(CUDNN_REDUCE_TENSOR_MAX, x, max);
  const Node e = graph.pointwise(CUDNN_POINTWISE_EXP, graph.pointwise(CUDNN_POINTWISE_SUB, x, max));
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
  const Node log = graph.pointwise(CUDNN_POINTWISE_LOG, sum);
  graph.pointwise(CUDNN_POINTWISE_ADD, max, log, Graph::none, lse, CUDNN_DATA_FLOAT);
  const Node p = graph.pointwise(CUDNN_POINTWISE_DIV, e, sum, Graph::none, CUDNN_DATA_BFLOAT16);
  graph.matmul(p, v, o, {.m = lengths, .k = lengths});
}

// to = weights·of [keys, head_dim], summed over the heads that share a kv head.
void SdpaGraph::key_gradient(Node weights, Node of, Node to) {
  const Graph::Limits limits{.m = lengths, .k = lengths};
  if (s.heads == s.kv_heads) return graph.matmul(weights, of, to, limits);
  const Node of_heads = temporary(CUDNN_DATA_BFLOAT16, {s.sequences, s.heads, s.longest, s.head_dim});
  graph.matmul(weights, of, of_heads, limits);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, to);
}

void SdpaGraph::add_backward() {
  const Dims rows{s.sequences, s.heads, s.longest, s.head_dim};
  const Node products = temporary(CUDNN_DATA_FLOAT, rows), sum = temporary(CUDNN_DATA_FLOAT, row);
  graph.pointwise(CUDNN_POINTWISE_MUL, d_o, o, Graph::none, products, CUDNN_DATA_FLOAT);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products, sum);
  graph.pointwise(CUDNN_POINTWISE_MUL, sum, one, Graph::none, row_sum, CUDNN_DATA_FLOAT);

  const auto transpose = [&](Node x) {
    const int64_t n = s.longest;
    const Node to = graph.temporary(CUDNN_DATA_BFLOAT16, scores, {s.heads * n * n, n * n, 1, n});
    graph.reshape(x, to);
    return to;
  };
  const Node p = graph.pointwise(CUDNN_POINTWISE_EXP,
                                 mask_future(graph.pointwise(CUDNN_POINTWISE_SUB, mask_padding(scaled_scores()), lse)));
  key_gradient(transpose(p), d_o, dv);

  const Node dp = temporary(CUDNN_DATA_FLOAT, scores);
  graph.matmul(d_o, v, dp, {.m = lengths, .n = lengths});
  const Node ds = graph.pointwise(CUDNN_POINTWISE_MUL, graph.pointwise(CUDNN_POINTWISE_SUB, dp, row_sum), p);
  const Node scaled = graph.pointwise(CUDNN_POINTWISE_MUL, ds, scale);
  key_gradient(transpose(scaled), q, dk);

  const int64_t width = 2 * s.kv_heads * s.head_dim;
  const Node keys = graph.temporary(CUDNN_DATA_BFLOAT16, {s.sequences, s.kv_heads, s.longest, s.head_dim},
                                    {s.longest * width, s.head_dim, width, 1}, kv_offsets);
  graph.reshape(k, keys);
  graph.matmul(scaled, keys, dq, {.m = lengths, .k = lengths});  // into dq itself: without atomics
}

}  // namespace

int64_t CudnnSequences::table_size() const { return round_up(sequences_ + 1, 4); }

void CudnnSequences::set(std::span<const AttentionSegment> segments, int64_t tokens, const CudnnHeads& heads) {
  constexpr int64_t sequence_step = 16, token_step = 64;  // few classes of shapes
  heads_ = heads;
  tokens_ = tokens;
  std::vector<int32_t> lengths;
  int64_t end = 0;
  for (const AttentionSegment& s : segments) {
    if (s.prefix_begin < s.prefix_end)
      fail(ErrorKind::usage, "attention: cudnn knows no shared prefixes: set train.share_prefix: false");
    if (s.begin == s.end) continue;
    NOTELLM_CHECK(s.begin == end, "a segment begins at token {}, but the one before ends at {}", s.begin, end);
    end = s.end;
    lengths.push_back(s.end - s.begin);
  }
  NOTELLM_CHECK(end == tokens, "segments have {} tokens of {}", end, tokens);
  NOTELLM_CHECK(tokens * std::max(heads.heads, 2 * heads.kv_heads) * heads.head_dim <= INT32_MAX,
                "{} tokens are too many for cuDNN's offsets", tokens);
  sequences_ = round_up(std::max<int64_t>(static_cast<int64_t>(lengths.size()), 1), sequence_step);
  longest_ = token_step;
  for (int32_t length : lengths) longest_ = std::max(longest_, round_up(length, token_step));

  tables_.assign(4 * table_size(), 0);
  std::copy(lengths.begin(), lengths.end(), tables_.begin());
  const int64_t widths[] = {heads.heads * heads.head_dim, 2 * heads.kv_heads * heads.head_dim, heads.heads};
  for (int64_t table = 1; table < 4; ++table) {
    int64_t offset = 0;
    for (int64_t i = 0; i <= sequences_; ++i) {
      tables_[table * table_size() + i] = static_cast<int32_t>(offset * widths[table - 1]);
      if (i < static_cast<int64_t>(lengths.size())) offset += lengths[i];
    }
  }
  device_tables_ = {};
}

Tensor CudnnSequences::tables() const { return Tensor::of(tables_.data(), {static_cast<int64_t>(tables_.size())}); }

void CudnnSequences::set_device_tables(Tensor tables) {
  NOTELLM_CHECK(tables.dtype == DType::i32 && tables.size() == static_cast<int64_t>(tables_.size()) &&
                    reinterpret_cast<uintptr_t>(tables.data) % 16 == 0,
                "device tables are {}, not a copy of {} entries", describe(tables), tables_.size());
  device_tables_ = tables;
}

const int32_t* CudnnSequences::device_table(int i) const {
  NOTELLM_CHECK(device_tables_.data, "the sequences' device tables have not been set");
  return device_tables_.as<int32_t>() + i * table_size();
}

struct CudnnAttention::Library {
  cudnnHandle_t handle = nullptr;
  CudnnHeads heads;
  std::map<Shape, std::pair<SdpaGraph, Plan>> plans;

  explicit Library(const CudnnHeads& heads) : heads(heads) { gpu::cudnn::check(cudnnCreate(&handle), "cudnnCreate"); }
  ~Library() { cudnnDestroy(handle); }

  const std::pair<SdpaGraph, Plan>& find(const CudnnSequences& s, bool backward) {
    const Shape shape{backward, s.sequences(), s.longest(), heads.heads, heads.kv_heads, heads.head_dim};
    if (const auto found = plans.find(shape); found != plans.end()) return found->second;
    constexpr size_t most_plans = 64;  // batches of ever new lengths must not grow memory
    if (plans.size() >= most_plans) plans.clear();
    Descriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    device.set(CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, handle);
    device.finalize();
    SdpaGraph graph(shape);
    Plan plan(graph.graph, device);
    return plans.emplace(shape, std::pair(std::move(graph), std::move(plan))).first->second;
  }
};

CudnnAttention::CudnnAttention(DType compute, const CudnnHeads& heads) {
  if (compute != DType::bf16) fail(ErrorKind::usage, "attention: cudnn computes in bf16 only: set precision: bf16");
  if (heads.head_dim % 8 != 0 || heads.head_dim > 128)
    fail(ErrorKind::usage, "attention: cudnn needs a head_dim that is a multiple of 8 and at most 128, not {}",
         heads.head_dim);
  const gpu::DeviceInfo info = gpu::device_info();
  if (info.major < 9)
    fail(ErrorKind::device,
         "attention: cudnn needs sm_90, but {} is sm_{}{}, for which cuDNN has no backward pass that gives the same "
         "bits again: set attention: fused",
         info.name, info.major, info.minor);
  library_ = std::make_shared<Library>(heads);
}

namespace {

constexpr int64_t alignment_bytes = 256;

int64_t row_sum_bytes(const CudnnSequences& s, bool backward) {
  return backward ? round_up(s.sequences() * s.heads().heads * s.longest() * 4, alignment_bytes) : 0;
}

void check_tensors(const CudnnSequences& s, const CudnnHeads& h, const Tensor& q, const Tensor& kv, const Tensor& o,
                   const Tensor& lse) {
  NOTELLM_CHECK(s.heads().heads == h.heads && s.heads().kv_heads == h.kv_heads && s.heads().head_dim == h.head_dim,
                "the sequences were set for other heads");
  expect("q", q, DType::bf16, s.tokens(), h.heads * h.head_dim);
  expect("kv", kv, DType::bf16, s.tokens(), 2 * h.kv_heads * h.head_dim);
  expect("o", o, DType::bf16, s.tokens(), h.heads * h.head_dim);
  expect("lse", lse, DType::f32, s.tokens(), h.heads);
}

// What both passes bind. k and v are columns of the same rows.
struct Pack {
  float scale, minus_infinity = -std::numeric_limits<float>::infinity(), one = 1;
  std::vector<std::pair<Node, const void*>> entries;

  Pack(const SdpaGraph& g, const CudnnSequences& s, const Tensor& q, const Tensor& kv, const Tensor& o,
       const Tensor& lse)
      : scale(1.0f / std::sqrt(static_cast<float>(s.heads().head_dim))) {
    entries = {{g.lengths, s.device_table(0)},
               {g.q_offsets, s.device_table(1)},
               {g.kv_offsets, s.device_table(2)},
               {g.lse_offsets, s.device_table(3)},
               {g.q, q.data},
               {g.k, kv.data},
               {g.v, values(s, kv)},
               {g.o, o.data},
               {g.lse, lse.data},
               {g.scale, &scale},
               {g.padding_value, &minus_infinity},
               {g.mask_value, &minus_infinity}};
  }
  Pack(const Pack&) = delete;
  static const void* values(const CudnnSequences& s, const Tensor& kv) {
    return kv.as<bf16>() + s.heads().kv_heads * s.heads().head_dim;
  }
};

// The first aligned byte of the workspace.
char* aligned(const Tensor& workspace) {
  return reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(workspace.data), alignment_bytes));
}

}  // namespace

int64_t CudnnAttention::workspace(const CudnnSequences& s, bool backward) {
  if (s.tokens() == 0) return 0;
  const int64_t bytes = row_sum_bytes(s, backward) + library_->find(s, backward).second.workspace_bytes();
  return (round_up(bytes, 4) + alignment_bytes) / 4;
}

void CudnnAttention::forward(Stream& stream, const CudnnSequences& s, Tensor q, Tensor kv, Tensor o, Tensor lse,
                             Tensor workspace) {
  check_tensors(s, library_->heads, q, kv, o, lse);
  if (s.tokens() == 0) return;
  const int64_t needed = this->workspace(s, false);
  NOTELLM_CHECK(workspace.dtype == DType::f32 && workspace.size() >= needed, "workspace is {}, but {} f32 are needed",
                describe(workspace), needed);
  const auto& [graph, plan] = library_->find(s, false);
  const Pack pack(graph, s, q, kv, o, lse);
  gpu::cudnn::check(cudnnSetStream(library_->handle, static_cast<cudaStream_t>(stream.native())), "cudnnSetStream");
  plan.run(library_->handle, pack.entries, aligned(workspace));
}

void CudnnAttention::backward(Stream& stream, const CudnnSequences& s, Tensor d_o, Tensor q, Tensor kv, Tensor o,
                              Tensor lse, Tensor dq, Tensor dkv, Tensor workspace) {
  check_tensors(s, library_->heads, q, kv, o, lse);
  expect("d_o", d_o, DType::bf16, q.rows(), q.cols());
  expect("dq", dq, DType::bf16, q.rows(), q.cols());
  expect("dkv", dkv, DType::bf16, kv.rows(), kv.cols());
  if (s.tokens() == 0) return;
  const int64_t needed = this->workspace(s, true);
  NOTELLM_CHECK(workspace.dtype == DType::f32 && workspace.size() >= needed, "workspace is {}, but {} f32 are needed",
                describe(workspace), needed);
  const auto& [graph, plan] = library_->find(s, true);
  Pack pack(graph, s, q, kv, o, lse);
  char* const row_sum = aligned(workspace);
  for (const auto& entry : std::initializer_list<std::pair<Node, const void*>>{{graph.d_o, d_o.data},
                                                                               {graph.dq, dq.data},
                                                                               {graph.dk, dkv.data},
                                                                               {graph.dv, Pack::values(s, dkv)},
                                                                               {graph.row_sum, row_sum},
                                                                               {graph.one, &pack.one}})
    pack.entries.push_back(entry);
  gpu::cudnn::check(cudnnSetStream(library_->handle, static_cast<cudaStream_t>(stream.native())), "cudnnSetStream");
  plan.run(library_->handle, pack.entries, row_sum + row_sum_bytes(s, true));
}

}  // namespace notellm

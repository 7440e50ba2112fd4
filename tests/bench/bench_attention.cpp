// Attention, forward and backward, at the shapes of the configurations. FLOP/s count what causality asks for and
// nothing else: per query, head and visible key 4·head_dim forward and 10·head_dim backward (P is computed again).
// "sgemm" is the FLOP/s of oneDNN at 1024³ in the same run: what the f32 units can do.
#include <benchmark/benchmark.h>
#include <dnnl.h>
#include <omp.h>

#include <random>
#include <vector>

#include "kernels/attention.h"
#include "runtime/memory.h"

namespace notellm {
namespace {

struct Shape {
  int heads, kv_heads, head_dim;
  int own_tokens, prefix_tokens, segments;  // a segment has 70 % to 130 % of own_tokens
  int queries;                              // last queries of each segment; 0: all
};
constexpr Shape shapes[] = {
    {6, 6, 32, 90, 25, 256, 0},  // a: demo.yaml
    {8, 8, 64, 115, 30, 32, 0},  // b: dim 512
    {6, 6, 32, 90, 25, 256, 6},  // c: last layer of a
    {8, 2, 64, 115, 30, 32, 0},  // d: b with grouped queries
    {2, 2, 64, 4096, 0, 1, 0},   // e: long
};

Buffer random_buffer(DType dtype, int64_t count, std::mt19937& random) {
  Buffer buffer(count * size_of(dtype));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i)
    if (dtype == DType::f32)
      static_cast<float*>(buffer.data())[i] = normal(random);
    else
      static_cast<bf16*>(buffer.data())[i] = bf16(normal(random));
  return buffer;
}

struct Inputs {
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> query_tokens;
  double visible_keys = 0;  // over all queries
  Buffer q, kv, o, lse, d_o, dq, dkv, workspace;
  AttentionPlan plan;
  Tensor tq, tkv, to, tlse, tdo, tdq, tdkv, tworkspace;

  Inputs(const Shape& shape, DType dtype) : q(0), kv(0), o(0), lse(0), d_o(0), dq(0), dkv(0), workspace(0) {
    std::mt19937 random(1);
    const int prefix = shape.prefix_tokens;
    int begin = 0;
    if (prefix > 0) add_segment(begin, begin + prefix, 0, 0), begin = prefix;
    for (int i = 0; i < shape.segments; ++i) {
      const int own = shape.segments == 1 ? shape.own_tokens
                                          : std::uniform_int_distribution(shape.own_tokens * 7 / 10,
                                                                          shape.own_tokens * 13 / 10)(random);
      add_segment(begin, begin + own, prefix, shape.queries);
      begin += own;
    }
    const int64_t queries = static_cast<int64_t>(query_tokens.size()), h = shape.heads, g = shape.kv_heads,
                  d = shape.head_dim;
    q = random_buffer(dtype, queries * h * d, random);
    kv = random_buffer(dtype, begin * 2 * g * d, random);
    d_o = random_buffer(dtype, queries * h * d, random);
    o = Buffer(q.bytes());
    dq = Buffer(q.bytes());
    dkv = Buffer(kv.bytes());
    lse = Buffer(queries * h * 4);
    tq = q.tensor(dtype, {queries, h, d});
    to = o.tensor(dtype, {queries, h, d});
    tdo = d_o.tensor(dtype, {queries, h, d});
    tdq = dq.tensor(dtype, {queries, h, d});
    tkv = kv.tensor(dtype, {begin, 2 * g, d});
    tdkv = dkv.tensor(dtype, {begin, 2 * g, d});
    tlse = lse.tensor(DType::f32, {queries, h});
    plan.set(segments, query_tokens, begin);
    const int64_t elements = attention_workspace(Stream(), plan, tq, tkv);
    workspace = Buffer(elements * 4);
    tworkspace = workspace.tensor(DType::f32, {elements});
  }

  void add_segment(int begin, int end, int prefix, int queries) {
    const int first_query = static_cast<int>(query_tokens.size());
    for (int token = queries ? end - queries : begin; token < end; ++token) {
      query_tokens.push_back(token);
      visible_keys += prefix + token - begin + 1;
    }
    segments.push_back({begin, end, 0, prefix, first_query, static_cast<int>(query_tokens.size())});
  }
};

void count_flops(benchmark::State& state, double flops) {
  state.counters["FLOP/s"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void attention_pass(benchmark::State& state, bool backward) {
  const Shape& shape = shapes[state.range(0)];
  Inputs in(shape, state.range(1) ? DType::bf16 : DType::f32);
  omp_set_num_threads(static_cast<int>(state.range(2)));
  Stream stream;
  const auto forward_pass = [&] { attention(stream, in.plan, in.tq, in.tkv, in.to, in.tlse); };
  const auto backward_pass = [&] {
    attention_backward(stream, in.plan, in.tdo, in.tq, in.tkv, in.to, in.tlse, in.tdq, in.tdkv, in.tworkspace);
  };
  forward_pass();  // what the backward pass needs; and both touch their memory before the clock runs
  if (backward) backward_pass();
  for (auto _ : state)
    if (backward)
      backward_pass();
    else
      forward_pass();
  count_flops(state, in.visible_keys * shape.heads * shape.head_dim * (backward ? 10 : 4));
}
void forward(benchmark::State& state) { attention_pass(state, false); }
void backward(benchmark::State& state) { attention_pass(state, true); }

void sgemm(benchmark::State& state) {
  constexpr int64_t n = 1024;
  std::vector<float> a(n * n, 1.0f), b(n * n, 1.0f), c(n * n);
  omp_set_num_threads(static_cast<int>(state.range(0)));
  for (auto _ : state) dnnl_sgemm('N', 'N', n, n, n, 1.0f, a.data(), n, b.data(), n, 0.0f, c.data(), n);
  count_flops(state, 2.0 * n * n * n);
}

BENCHMARK(sgemm)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK(forward)
    ->ArgNames({"shape", "bf16", "threads"})
    ->ArgsProduct({{0, 1, 2, 3, 4}, {0, 1}, {1, 2}})
    ->UseRealTime();
BENCHMARK(backward)
    ->ArgNames({"shape", "bf16", "threads"})
    ->ArgsProduct({{0, 1, 2, 3, 4}, {0, 1}, {1, 2}})
    ->UseRealTime();

}  // namespace
}  // namespace notellm

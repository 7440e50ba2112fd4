// Attention by cuDNN against the double loop: ragged lengths, grouped queries, the same bits again, what it refuses;
// and that the stand-in for cuDNN finds wrong descriptors. Registered for an H100 and for an A100, which is refused.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/attention_cudnn.h"
#include "kernels/cudnn_graph.h"
#include "runtime/gpu.h"
#include "tests/kernels/attention_reference.h"
#include "tests/support/expect_error.h"
#include "tests/support/on_gpu.h"
#include "tests/support/softgpu.h"

namespace notellm {
namespace {

using namespace test;

CudnnHeads cudnn_heads(const Heads& h) { return {h.heads, h.kv_heads, h.head_dim}; }

// The op's buffers, all results NaN at first; the workspace is not written at all.
struct CudnnOp {
  Stream stream{Device::cuda};
  Layout layout;
  Heads h;
  CudnnAttention attention;
  CudnnSequences sequences;
  OnGpu<int32_t> tables;
  OnGpu<bf16> q, kv, d_o, o, dq, dkv;
  OnGpu<float> lse;

  explicit CudnnOp(const Reference<double>& from)
      : layout(from.layout),
        h(from.h),
        attention(DType::bf16, cudnn_heads(h)),
        tables(stream, table_copy()),
        q(stream, converted<bf16>(from.q)),
        kv(stream, converted<bf16>(from.kv)),
        d_o(stream, converted<bf16>(from.d_o)),
        o(stream, std::vector<bf16>(from.q.size(), bf16(NAN))),
        dq(stream, std::vector<bf16>(from.q.size(), bf16(NAN))),
        dkv(stream, std::vector<bf16>(from.kv.size(), bf16(NAN))),
        lse(stream, std::vector<float>(from.lse.size(), NAN)) {
    sequences.set_device_tables(tables.tensor({sequences.tables().size()}));
  }
  std::vector<int32_t> table_copy() {
    sequences.set(layout.segments, layout.tokens, cudnn_heads(h));
    const auto span = sequences.tables().span<int32_t>();
    return {span.begin(), span.end()};
  }
  Tensor rows(const OnGpu<bf16>& v) { return v.tensor({layout.tokens, h.heads, h.head_dim}); }
  Tensor keys(const OnGpu<bf16>& v) { return v.tensor({layout.tokens, 2 * h.kv_heads, h.head_dim}); }
  Tensor lse_tensor() { return lse.tensor({layout.tokens, h.heads}); }

  CudnnOp& run() {
    const int64_t forward_size = attention.workspace(sequences, false), size = attention.workspace(sequences, true);
    Buffer forward_memory(forward_size * 4 + 16, Memory::device), memory(size * 4 + 16, Memory::device);
    attention.forward(stream, sequences, rows(q), keys(kv), rows(o), lse_tensor(),
                      Tensor(forward_memory.data(), DType::f32, {forward_size}));
    attention.backward(stream, sequences, rows(d_o), rows(q), keys(kv), rows(o), lse_tensor(), rows(dq), keys(dkv),
                       Tensor(memory.data(), DType::f32, {size}));
    stream.synchronize();
    return *this;
  }
};

// As for the fused kernels: twice the error of a plain loop that rounds P and dS to bf16, and what f32 may err. cuDNN
// also rounds each head's dk and dv before it adds heads that share a kv head.
void compare(const Layout& layout, const Heads& h) {
  SCOPED_TRACE(fmt::format("{} heads, {} kv heads, head_dim {}", h.heads, h.kv_heads, h.head_dim));
  Reference<double> expected = random_reference<bf16>(layout, h, 11);
  expected.forward();
  expected.backward();
  const Reference<float> plain = plain_bf16_loop(expected);
  CudnnOp run(expected);
  run.run();
  const Tolerance f32(expected);
  EXPECT_LE(max_error(run.lse.download(), expected.lse), f32.lse);
  EXPECT_LE(max_error(run.o.download(), expected.o), 2 * max_error(plain.o, expected.o) + f32.o);
  EXPECT_LE(max_error(run.dq.download(), expected.dq), 2 * max_error(plain.dq, expected.dq) + f32.dq);
  EXPECT_LE(max_error(run.dkv.download(), expected.dkv), 2 * max_error(plain.dkv, expected.dkv) + f32.dkv);
}

Layout of_lengths(std::initializer_list<int> lengths) {
  Layout layout;
  for (int length : lengths) layout.add(length, length);
  return layout;
}

// cuDNN has what is tested here from sm_90 on.
class AttentionCudnn : public ::testing::Test {
 protected:
  void SetUp() override {
    if (gpu::device_info().major >= 9) return;
    EXPECT_ERROR(device, "needs sm_90", CudnnAttention(DType::bf16, {2, 1, 64}));
    GTEST_SKIP() << "needs sm_90; runs as such in test_cuda_attention_cudnn_sm_90";
  }
};

TEST_F(AttentionCudnn, LengthsAroundTheStep) {
  for (int length : {1, 63, 64, 65}) compare(of_lengths({length}), {1, 1, 64});
}

TEST_F(AttentionCudnn, RaggedAndGrouped) {
  const Layout layout = of_lengths({25, 1, 0, 90, 17, 64, 3, 0, 40});
  for (const Heads& h : {Heads{1, 1, 8}, {2, 2, 32}, {4, 1, 64}, {6, 2, 64}, {2, 1, 128}}) compare(layout, h);
}

TEST_F(AttentionCudnn, MoreSequencesThanAStep) {
  Layout layout;
  for (int i = 0; i < 20; ++i) layout.add(1 + 3 * i % 11, 1 + 3 * i % 11);
  compare(layout, {2, 1, 32});
}

TEST_F(AttentionCudnn, NoTokens) {
  const Reference<double> in(Layout(), {2, 1, 64});
  CudnnOp run(in);
  run.run();
}

TEST_F(AttentionCudnn, SameBitsAgain) {
  const Reference<double> in = random_reference<bf16>(of_lengths({33, 70, 8}), {4, 2, 64}, 13);
  CudnnOp one(in), two(in);
  one.run();
  two.run().run();
  const auto same = [](const auto& a, const auto& b) {
    const auto x = a.download(), y = b.download();
    return std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0;
  };
  EXPECT_TRUE(same(one.o, two.o) && same(one.lse, two.lse) && same(one.dq, two.dq) && same(one.dkv, two.dkv));
}

TEST_F(AttentionCudnn, Errors) {
  EXPECT_ERROR(usage, "precision: bf16", CudnnAttention(DType::f32, {2, 1, 64}));
  EXPECT_ERROR(usage, "multiple of 8", CudnnAttention(DType::bf16, {2, 1, 20}));
  EXPECT_ERROR(usage, "at most 128", CudnnAttention(DType::bf16, {2, 1, 136}));
  CudnnSequences sequences;
  EXPECT_ERROR(usage, "train.share_prefix: false",
               sequences.set(Layout().add(5, 5).add(4, 4, 0, 5).segments, 9, {2, 1, 64}));
  EXPECT_ERROR(internal, "9 tokens of 10", sequences.set(of_lengths({5, 4}).segments, 10, {2, 1, 64}));
  EXPECT_ERROR(internal, "tokens", sequences.set(of_lengths({5}).segments, 5'000'000'000, {2, 1, 64}));

  CudnnOp run(random_reference<bf16>(of_lengths({5, 4}), {2, 1, 64}, 1));
  Buffer memory(64, Memory::device);
  const Tensor small(memory.data(), DType::f32, {16});
  EXPECT_ERROR(internal, "workspace",
               run.attention.forward(run.stream, run.sequences, run.rows(run.q), run.keys(run.kv), run.rows(run.o),
                                     run.lse_tensor(), small));
  EXPECT_ERROR(internal, "q is",
               run.attention.forward(run.stream, run.sequences, run.lse_tensor(), run.keys(run.kv), run.rows(run.o),
                                     run.lse_tensor(), small));
  run.sequences.set(of_lengths({9}).segments, 9, {2, 1, 64});
  const int64_t size = run.attention.workspace(run.sequences, false);
  EXPECT_ERROR(internal, "have not been set",
               run.attention.forward(run.stream, run.sequences, run.rows(run.q), run.keys(run.kv), run.rows(run.o),
                                     run.lse_tensor(), Tensor(memory.data(), DType::f32, {size})));
}

// Each wrong in one thing; the stand-in must say so.
TEST_F(AttentionCudnn, StandInFindsWrongDescriptors) {
  if (!softgpu_support::present()) GTEST_SKIP() << "NVIDIA's own library";
  using namespace gpu::cudnn;
  const auto expect_finding = [](auto&& wrong, const char* text) {
    EXPECT_THROW(wrong(), Error);
    EXPECT_NE(softgpu_support::take_findings().find(text), std::string::npos) << text;
  };
  const Dims dims{2, 1, 8, 8}, one{1, 1, 1, 1};
  expect_finding(
      [&] {
        Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT32, int64_t{1});
      },
      "values of type");
  expect_finding(
      [&] {
        Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 3, dims.data());
      },
      "3 values");
  expect_finding([&] { Descriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR).finalize(); }, "is not set");
  expect_finding(
      [&] {
        Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        d.set(CUDNN_ATTR_TENSOR_VECTOR_COUNT, CUDNN_TYPE_INT64, int64_t{1});
      },
      "unsupported");
  expect_finding([] { Descriptor d(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR); }, "unsupported");
  expect_finding(
      [&] {
        Graph g;
        g.data(CUDNN_DATA_BFLOAT16, dims, dense(dims), g.data(CUDNN_DATA_INT32, {2, 1, 1, 1}, one));  // not 3
      },
      "ragged offsets");
  expect_finding(
      [&] {
        Graph g;
        const auto a = g.data(CUDNN_DATA_BFLOAT16, dims, dense(dims));
        g.matmul(a, a, g.temporary(CUDNN_DATA_FLOAT, {2, 1, 8, 7}, {56, 56, 7, 1}), {});
      },
      "a product");
  expect_finding(
      [&] {
        Graph g;
        const auto a = g.temporary(CUDNN_DATA_FLOAT, dims, dense(dims));
        g.pointwise(CUDNN_POINTWISE_EXP, a);
        Descriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
        Plan(g, device);
      },
      "read before it is written");
}

TEST_F(AttentionCudnn, StandInFindsWrongPacks) {
  if (!softgpu_support::present()) GTEST_SKIP() << "NVIDIA's own library";
  using namespace gpu::cudnn;
  cudnnHandle_t handle;
  ASSERT_EQ(cudnnCreate(&handle), CUDNN_STATUS_SUCCESS);
  {
    Descriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    device.set(CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, handle);
    device.finalize();
    Graph g;
    const Dims dims{1, 1, 8, 8};
    const auto x = g.data(CUDNN_DATA_FLOAT, dims, dense(dims)), y = g.data(CUDNN_DATA_FLOAT, dims, dense(dims));
    g.pointwise(CUDNN_POINTWISE_EXP, x, Graph::none, Graph::none, y, CUDNN_DATA_FLOAT);
    const Plan plan(g, device);
    Buffer memory(2048, Memory::device), workspace(plan.workspace_bytes(), Memory::device);
    char* const at = static_cast<char*>(memory.data());
    using Pack = std::vector<std::pair<Graph::Tensor, const void*>>;
    const std::pair<Pack, const char*> wrong[] = {{Pack{{x, at}}, "has no memory"},
                                                  {Pack{{x, at}, {y, at + 4}}, "aligned less"},
                                                  {Pack{{x, at}, {y, &dims}}, "wrong memory"},
                                                  {Pack{{x, at}, {x, at}}, "there twice"},
                                                  {Pack{{x, at}, {y, at}, {7, at}}, "not in the graph"}};
    for (const auto& [pack, text] : wrong) {
      EXPECT_THROW(plan.run(handle, pack, workspace.data()), Error);
      EXPECT_NE(softgpu_support::take_findings().find(text), std::string::npos) << text;
    }
  }
  cudnnDestroy(handle);
}

}  // namespace
}  // namespace notellm

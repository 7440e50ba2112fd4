// What the kernels that are bound by memory move, counted by softgpu: 32-byte sectors that they write, and that they
// read and a block's first-level cache does not hold, against the floor of bytes: each input read once, each output
// written once (at most 1.1 times). And how full the sectors are.
#include <functional>

#include "kernels/adamw.h"
#include "kernels/convert.h"
#include "kernels/cross_entropy.h"
#include "kernels/decode_attention.h"
#include "kernels/embedding.h"
#include "kernels/note_vector.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"
#include "tests/support/softgpu.h"

namespace notellm {
namespace {

using test::cast;
using test::normal;
using test::OnGpu;

constexpr int64_t rows = 8192, cols = 512;  // the demo's step has five times as many rows
constexpr float eps = 1e-5f;

// A matrix of normal numbers in device memory.
template <class T>
OnGpu<T> random(Stream& stream, int64_t n) {
  return OnGpu<T>(stream, cast<T>(normal(n, 1)));
}

// Runs an op and holds the sectors of the kernels whose name contains `kernel` against `floor_bytes`.
void expect_near_floor(const char* kernel, Stream& stream, double floor_bytes, const std::function<void()>& op) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  softgpu_support::reset_counters();
  op();
  stream.synchronize();
  softgpu::Counters c;
  ASSERT_TRUE(softgpu_support::counters(kernel, c)) << kernel << " did not run";
  const double moved = 32.0 * static_cast<double>(c.global_fetched_sectors + c.global_write_sectors);
  const double requested = 32.0 * static_cast<double>(c.global_read_sectors + c.global_write_sectors);
  const double asked = static_cast<double>(c.global_read_bytes + c.global_write_bytes);
  std::printf("%-26s %7.2f MB, floor %7.2f MB: %.3f; requested sectors %.0f %% full\n", kernel, moved / 1e6,
              floor_bytes / 1e6, moved / floor_bytes, 100 * asked / requested);
  EXPECT_LE(moved, 1.1 * floor_bytes) << kernel;
  EXPECT_GE(asked, 0.9 * requested) << kernel << ": sectors that are not full";
}

template <class T>
class CudaCosts : public testing::Test {
 protected:
  static constexpr double matrix = double(rows * cols * sizeof(T)), column = double(rows * 4);
  Stream stream{Device::cuda};
};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(CudaCosts, Types);

TYPED_TEST(CudaCosts, RmsNorm) {
  using T = TypeParam;
  Stream& s = this->stream;
  const auto x = random<T>(s, rows * cols), delta = random<T>(s, rows * cols), gamma = random<T>(s, cols),
             y = random<T>(s, rows * cols);
  const auto inverse = random<float>(s, rows), dgamma = random<float>(s, cols);
  const Tensor tx = x.tensor({rows, cols}), td = delta.tensor({rows, cols}), tg = gamma.tensor({cols}),
               ty = y.tensor({rows, cols}), ti = inverse.tensor({rows});
  expect_near_floor("rms_norm_kernel", s, 4 * this->matrix + this->column,
                    [&] { rms_norm(s, tx, td, tg, eps, tx, ty, ti); });
  expect_near_floor("rms_norm_apply_kernel", s, 2 * this->matrix + this->column,
                    [&] { rms_norm_apply(s, tx, tg, ti, ty); });
  const int64_t parts = rms_norm_backward_workspace(rows, cols);
  const OnGpu<float> workspace(s, std::vector<float>(static_cast<size_t>(parts)));
  expect_near_floor("rms_norm_backward_kernel", s, 4 * this->matrix + this->column, [&] {
    rms_norm_backward(s, td, tx, tg, ti, ty, dgamma.tensor({cols}), workspace.tensor({parts}));
  });
}

TYPED_TEST(CudaCosts, Rope) {
  using T = TypeParam;
  Stream& s = this->stream;
  constexpr int64_t heads = 8, head_dim = 64, positions = 256;
  const auto x = random<T>(s, rows * cols);
  std::vector<float> table(positions * head_dim);
  rope_table(rope_frequencies(10000, head_dim), Tensor::of(table.data(), {positions, 2, head_dim / 2}));
  std::vector<int32_t> places(rows);
  for (int64_t r = 0; r < rows; ++r) places[r] = static_cast<int32_t>(r % positions);
  const OnGpu<float> device_table(s, table);
  const OnGpu<int32_t> device_places(s, places);
  // The table is read once a row.
  expect_near_floor("rope_kernel", s, 2 * this->matrix + this->column + rows * head_dim * 4.0, [&] {
    rope(s, x.tensor({rows, cols}), device_places.tensor({rows}), device_table.tensor({positions, 2, head_dim / 2}),
         heads, head_dim, +1);
  });
}

TYPED_TEST(CudaCosts, Swiglu) {
  using T = TypeParam;
  Stream& s = this->stream;
  const auto gate_up = random<T>(s, 2 * rows * cols), dy = random<T>(s, rows * cols), y = random<T>(s, rows * cols);
  const Tensor both = gate_up.tensor({rows, 2 * cols}), ty = y.tensor({rows, cols});
  expect_near_floor("swiglu_kernel", s, 3 * this->matrix, [&] { swiglu(s, both, ty); });
  expect_near_floor("swiglu_backward_kernel", s, 6 * this->matrix, [&] {
    swiglu_backward(s, dy.tensor({rows, cols}), both, both, ty);
  });
}

TYPED_TEST(CudaCosts, Rows) {
  using T = TypeParam;
  Stream& s = this->stream;
  const auto x = random<T>(s, rows * cols), y = random<T>(s, rows * cols);
  std::vector<int32_t> which(rows);
  for (int64_t r = 0; r < rows; ++r) which[r] = static_cast<int32_t>(r * 7 % rows);
  const OnGpu<int32_t> places(s, which);
  expect_near_floor("gather_kernel", s, 2 * this->matrix + this->column, [&] {
    gather_rows(s, x.tensor({rows, cols}), places.tensor({rows}), y.tensor({rows, cols}));
  });
  // Four rows to each of a quarter as many targets, in f32 as the embedding's gradient.
  for (int64_t r = 0; r < rows; ++r) which[r] = static_cast<int32_t>(r * 7 % (rows / 4));
  GroupedRows groups;
  groups.set(which);
  const RowGroups host = groups.view();
  const auto upload = [&](const Tensor& t) {
    return OnGpu<int32_t>(s, std::vector<int32_t>(t.as<int32_t>(), t.as<int32_t>() + t.size()));
  };
  const auto target = upload(host.target), begin = upload(host.begin), order = upload(host.rows);
  const auto sum = random<float>(s, rows / 4 * cols);
  expect_near_floor("scatter_kernel", s, this->matrix + 2.0 * (rows / 4) * cols * 4 + this->column * 1.5, [&] {
    scatter_add_rows(s, x.tensor({rows, cols}),
                     {target.tensor({rows / 4}), begin.tensor({rows / 4 + 1}), order.tensor({rows})},
                     sum.tensor({rows / 4, cols}));
  });
}

TYPED_TEST(CudaCosts, CrossEntropy) {
  using T = TypeParam;
  Stream& s = this->stream;
  constexpr int64_t labels = 128, vocabulary = 8192;
  const auto logits = random<float>(s, labels * vocabulary), loss = random<float>(s, labels);
  const auto dlogits = random<T>(s, labels * vocabulary);
  const OnGpu<int32_t> wanted(s, test::integers(labels, vocabulary, 2));
  expect_near_floor("cross_entropy_kernel", s, labels * vocabulary * (4.0 + sizeof(T)) + labels * 8.0, [&] {
    cross_entropy(s, logits.tensor({labels, vocabulary}), wanted.tensor({labels}), vocabulary, 1.0f,
                  loss.tensor({labels}), dlogits.tensor({labels, vocabulary}));
  });
}

// A new token of each of some notes, over their earlier ones: each key and value is read once.
TYPED_TEST(CudaCosts, DecodeAttention) {
  using T = TypeParam;
  Stream& s = this->stream;
  constexpr int64_t queries = 32, heads = 8, head_dim = 64, past = 200, wide = 2 * heads * head_dim;
  constexpr int64_t cache_rows = queries * (past + 1);
  const auto q = random<T>(s, queries * wide / 2), kv = random<T>(s, queries * wide), cache = random<T>(s, cache_rows * wide);
  std::vector<int32_t> runs, place;
  for (int32_t i = 0; i < queries; ++i) {
    const auto begin = static_cast<int32_t>(i * (past + 1)), end = static_cast<int32_t>(begin + past);
    runs.insert(runs.end(), {begin, end});
    place.push_back(end);
  }
  const OnGpu<int32_t> device_runs(s, runs), device_place(s, place);
  const Tensor tq = q.tensor({queries, heads, head_dim});
  const double read = (queries * past + queries) * wide * sizeof(T), written = queries * wide * sizeof(T);
  expect_near_floor("decode_attention_kernel", s, read + written + queries * (wide * sizeof(T) + 12.0), [&] {
    decode_attention(s, tq, kv.tensor({queries, 2 * heads, head_dim}), cache.tensor({cache_rows, 2 * heads, head_dim}),
                     device_runs.tensor({queries, 1, 2}), device_place.tensor({queries}), tq);
  });
}

class CudaCostsF32 : public CudaCosts<float> {};

TEST_F(CudaCostsF32, NoteVectors) {
  const auto v = random<float>(stream, rows * cols), z = random<float>(stream, rows * cols),
             norm = random<float>(stream, rows);
  const Tensor tv = v.tensor({rows, cols}), tz = z.tensor({rows, cols}), tn = norm.tensor({rows});
  expect_near_floor("normalize_kernel", stream, 2 * matrix + column, [&] { l2_normalize(stream, tv, tz, tn); });
  expect_near_floor("normalize_backward_kernel", stream, 3 * matrix + column,
                    [&] { l2_normalize_backward(stream, tv, tz, tn, tv); });
}

TEST_F(CudaCostsF32, Optimizer) {
  constexpr int64_t n = rows * cols;
  const auto gradient = random<float>(stream, n), w = random<float>(stream, n), m = random<float>(stream, n);
  const OnGpu<float> v(stream, std::vector<float>(n, 0.5f));
  const auto narrow = random<bf16>(stream, n);
  const AdamWStep step{1e-3f, 0.9f, 0.98f, 1e-8f, 0.01f, 1.0f, 3};
  expect_near_floor("adamw_kernel", stream, 7 * matrix + matrix / 2, [&] {
    adamw(stream, step, gradient.tensor({n}), w.tensor({n}), m.tensor({n}), v.tensor({n}), narrow.tensor({n}));
  });
  const OnGpu<double> result(stream, std::vector<double>(1)), parts(stream, std::vector<double>(sum_of_squares_parts));
  expect_near_floor("squares_kernel", stream, matrix, [&] {
    sum_of_squares(stream, gradient.tensor({n}), result.tensor({1}), parts.tensor({sum_of_squares_parts}));
  });
  expect_near_floor("convert_kernel", stream, 1.5 * matrix,
                    [&] { convert(stream, w.tensor({n}), narrow.tensor({n})); });
}

}  // namespace
}  // namespace notellm

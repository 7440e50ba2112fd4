// InfoNCE on CUDA against double, by the CPU's tolerances.
#include "kernels/infonce.h"
#include "tests/kernels/infonce_reference.h"
#include "tests/support/expect_error.h"
#include "tests/support/on_gpu.h"
#include "tests/support/softgpu.h"

namespace notellm {
namespace {

using namespace test::infonce;
using test::normal;
using test::OnGpu;

struct Start {
  float dz_rows = 0, dz_all = 0;
  double dtau = 0;
};

// The device's inputs of a problem. `shift` elements stand before the vectors: 1 makes them begin where no pack can.
Result run_from(const Problem& p, float scale, const Start& start, int64_t shift = 0) {
  Stream stream(Device::cuda);
  std::vector<float> vectors(shift, std::nanf(""));
  vectors.insert(vectors.end(), p.z.begin(), p.z.end());
  const OnGpu z(stream, vectors), log_q(stream, p.log_q);
  const Mask mask(p);
  const OnGpu begin(stream, mask.begin), columns(stream, mask.columns);
  const int64_t size = infonce_workspace(Device::cuda, p.rows, p.cols, p.d);
  // Exactly as large as asked for: softgpu sees an access beyond.
  const Buffer workspace(size * 4, Memory::device);
  const OnGpu lse(stream, std::vector<double>(p.rows)), dtau(stream, std::vector<double>{start.dtau});
  const OnGpu positive(stream, std::vector<float>(p.rows)), similarity(stream, std::vector<float>(p.rows));
  const OnGpu dz_rows(stream, std::vector<float>(p.rows * p.d, start.dz_rows)),
      dz_all(stream, std::vector<float>(p.cols * p.d, start.dz_all));

  Tensor z_all = z.tensor({shift + p.cols * p.d}).slice(shift, shift + p.cols * p.d).reshape({p.cols, p.d});
  const Tensor z_rows = z_all.slice(p.first, p.first + p.rows), w = workspace.tensor(DType::f32, {size});
  const Tensor q = p.log_q.empty() ? Tensor() : log_q.tensor({p.cols}), b = begin.tensor({p.rows + 1}),
               m = columns.tensor({static_cast<int64_t>(mask.columns.size())}), l = lse.tensor({p.rows});
  infonce(stream, z_rows, p.first, z_all, p.tau, q, b, m, l, positive.tensor({p.rows}), similarity.tensor({p.rows}), w);
  infonce_backward(stream, z_rows, p.first, z_all, p.tau, q, b, m, l, scale, dz_rows.tensor({p.rows, p.d}),
                   dz_all.tensor({p.cols, p.d}), dtau.tensor({1}), w);
  Result r;
  r.lse = lse.download();
  r.dtau = dtau.download();
  r.positive = positive.download();
  r.similarity = similarity.download();
  r.dz_rows = dz_rows.download();
  r.dz_all = dz_all.download();
  return r;
}

Result run(const Problem& p, float scale) { return run_from(p, scale, {}); }
void check(const Problem& p, double tolerance = 1e-5) { test::infonce::check(run, p, tolerance); }

const float hot = std::log(100.0f);

TEST(InfoNceCuda, ByHand) {
  // Two pairs along the axes, e^tau = 1 (tests/kernels/test_infonce.cpp).
  const Problem p{4, 0, 4, 2, 0.0f, {1, 0, 1, 0, 0, 1, 0, 1}, {}, {{0}, {1}, {2}, {3}}};
  const Result r = run(p, 1.0f);
  const double e = std::exp(1.0), other = 1 / (e + 2);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(r.lse[i], std::log(e + 2), 1e-7);
    EXPECT_FLOAT_EQ(r.positive[i], 1.0f);
    EXPECT_FLOAT_EQ(r.similarity[i], 0.0f);
  }
  EXPECT_NEAR(r.dz_rows[0], -2 * other, 1e-7);
  EXPECT_NEAR(r.dz_rows[1], 2 * other, 1e-7);
  EXPECT_NEAR(r.dz_all[0], -2 * other, 1e-7);
  EXPECT_NEAR(r.dz_all[1], 2 * other, 1e-7);
  EXPECT_NEAR(r.dtau[0], 4 * -2 * other, 1e-6);
}

TEST(InfoNceCuda, APairAloneHasNothingToLearn) {
  const Result r = run({2, 0, 2, 2, 3.0f, {1, 0, 0, 1}, {}, {{0}, {1}}}, 1.0f);
  for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(r.lse[i], r.positive[i]);
  EXPECT_EQ(r.similarity[0], 0.0f) << "no negatives";
  for (float value : r.dz_rows) EXPECT_EQ(value, 0.0f);
  EXPECT_EQ(r.dtau[0], 0.0);
}

TEST(InfoNceCuda, NoRows) {
  const Result r = run_from(make(0, 2, 4, 3, 1.0f, false, 0), 1.0f, {.dz_all = 7.0f, .dtau = 11.0});
  for (float value : r.dz_all) EXPECT_EQ(value, 7.0f);
  EXPECT_EQ(r.dtau[0], 11.0);
}

TEST(InfoNceCuda, AgainstDouble) {
  check(make(6, 0, 6, 5, 3.0f, false, 0));
  check(make(1, 3, 8, 3, 1.0f, true, 2));
  check(make(1, 0, 6, 1, 1.0f, true, 0));
  check(make(128, 0, 128, 16, hot, false, 3));     // whole tiles
  check(make(130, 90, 260, 32, hot, true, 5));     // one tile and a bit, both ways
  check(make(66, 0, 66, 67, hot, true, 4));        // no packs, more than one slice of coordinates, the last of 3
  check(make(20, 600, 900, 128, hot, false, 40));  // parts of the columns, two whole slices
  check(make(300, 0, 300, 20, 3.0f, true, 10));    // parts of both
}

TEST(InfoNceCuda, SeveralTilesInAPart) {
  // So many columns that their blocks do not split the rows further, and each goes over more than one tile.
  check(make(70, 5, 34 * 1024, 2, 2.0f, false, 3));
}

TEST(InfoNceCuda, VectorsThatBeginAnywhere) {
  const Problem p = make(70, 10, 100, 8, 3.0f, true, 2);
  const auto shifted = [](const Problem& problem, float scale) { return run_from(problem, scale, {}, 1); };
  test::infonce::check(shifted, p);
}

TEST(InfoNceCuda, SmallLossesKeepTheirDigits) {
  for (int64_t d : {5, 8}) {
    const Problem p = make(16, 0, 16, d, hot, false, 0, 0.2f);
    const Exact e = exact(p, 1.0);
    ASSERT_LT(std::accumulate(e.loss.begin(), e.loss.end(), 0.0), 1e-6);
    // One difference of two S makes the loss; each is off by the d roundings of its cosine and its own.
    check(p, 2 * static_cast<double>(d + 1) * 100 * test::f32_roundoff);
  }
}

TEST(InfoNceCuda, ProbabilitiesOfARowSumToOne) {
  // As on the CPU: every S is near 90, where an lse in f32 would leave 37 roundoffs.
  const float factor = 90.0f;
  Problem p = make(64, 0, 64, 2, std::log(factor), false, 0);
  const std::vector<float> small = normal(64, 5, 0.05f);
  for (int64_t j = 0; j < 64; ++j) p.z[2 * j] = 1.0f, p.z[2 * j + 1] = small[j];
  const Result r = run(p, 1.0f);
  double squares = 0;
  for (int64_t i = 0; i < 64; ++i) squares += std::pow(r.dz_rows[2 * i] / factor, 2);
  EXPECT_LT(std::sqrt(squares / 64), 16 * test::f32_roundoff);
}

TEST(InfoNceCuda, WholeTilesMasked) {
  Problem p = make(2, 580, 600, 8, 2.0f, true, 0);
  for (int32_t j = 0; j < 560; ++j) p.masked[0].insert(j);
  for (int32_t j = 0; j < 600; ++j)
    if (j != 580) p.masked[1].insert(j);  // no negatives at all
  check(p);
}

TEST(InfoNceCuda, GradientsAreAddedTo) {
  const Problem p = make(150, 0, 200, 4, 2.0f, false, 0);
  const Result once = run(p, 1.0f), added = run_from(p, 1.0f, {5.0f, 7.0f, 11.0});
  for (size_t i = 0; i < once.dz_rows.size(); ++i) EXPECT_NEAR(added.dz_rows[i], 5.0f + once.dz_rows[i], 1e-5);
  for (size_t i = 0; i < once.dz_all.size(); ++i) EXPECT_NEAR(added.dz_all[i], 7.0f + once.dz_all[i], 1e-5);
  EXPECT_NEAR(added.dtau[0], 11.0 + once.dtau[0], 1e-12 * (11 + std::fabs(once.dtau[0])));
}

TEST(InfoNceCuda, SameBitsEachTime) {
  const Problem p = make(140, 40, 200, 12, 3.0f, true, 3);
  const auto bytes = [&] {
    const Result r = run(p, 1.0f);
    return test::bytes_of(r.lse, r.dtau) + test::bytes_of(r.positive, r.similarity, r.dz_rows, r.dz_all);
  };
  EXPECT_TRUE(bytes() == bytes());
}

TEST(InfoNceCuda, NanIsSeen) {
  Problem p = make(4, 0, 4, 4, 1.0f, false, 0);
  p.z[0] = std::nanf("");
  EXPECT_TRUE(std::isnan(run(p, 1.0f).lse[2]));
  p.z[4] = std::nanf("");  // rows 2 and 3 have nothing but NaN to compare with
  EXPECT_TRUE(std::isnan(run(p, 1.0f).lse[2]));
}

TEST(InfoNceCuda, WorkspaceIsBounded) {
  // 264 tiles of 128 vectors, and 33 numbers a row at most: never rows × columns.
  for (int64_t rows : {2, 1000, 8192, 65536})
    for (int64_t cols : {1000, 65536})
      for (int64_t d : {64, 128})
        if (rows <= cols) {
          EXPECT_LE(infonce_workspace(Device::cuda, rows, cols, d), 264 * 128 * (d + 8) + 33 * rows);
        }
}

// The vectors' coordinates in shared memory meet in no bank: what conflicts there are come from the mask, whatever d.
TEST(InfoNceCuda, BankConflictsDoNotGrowWithTheVectors) {
  if (!softgpu_support::present()) GTEST_SKIP() << "counted by softgpu";
  const auto conflicts = [](int64_t d) {
    softgpu_support::reset_counters();
    run(make(100, 0, 100, d, 3.0f, false, 3), 1.0f);
    softgpu::Counters counted;
    EXPECT_TRUE(softgpu_support::counters("infonce_kernel", counted));
    return counted.shared_conflicts;
  };
  EXPECT_EQ(conflicts(128), conflicts(16));
}

TEST(InfoNceCuda, Errors) {
  Stream stream(Device::cuda);
  const int64_t size = infonce_workspace(Device::cuda, 4, 4, 2);
  const OnGpu z(stream, std::vector<float>(8)), w(stream, std::vector<float>(size));
  const OnGpu lse(stream, std::vector<double>(4));
  const OnGpu begin(stream, std::vector<int32_t>(5)), mask(stream, std::vector<int32_t>(4));
  const Tensor all = z.tensor({4, 2}), row = w.tensor({4}), l = lse.tensor({4}), m = mask.tensor({4});
  const auto forward = [&](Tensor mask_begin, int64_t of_workspace) {
    infonce(stream, all, 0, all, 1, {}, mask_begin, m, l, row, row, w.tensor({of_workspace}));
  };
  EXPECT_ERROR(internal, "workspace", forward(begin.tensor({5}), size - 1));
  EXPECT_ERROR(internal, "mask_begin", forward(begin.tensor({4}), size));
}

}  // namespace
}  // namespace notellm

// L2 normalisation on CUDA against double: packs and ragged rows, longer than the registers hold, tiny and huge.
#include "kernels/note_vector.h"
#include "tests/kernels/op_support.h"
#include "tests/support/on_gpu.h"

namespace notellm {
namespace {

using test::normal;
using test::OnGpu;

TEST(CudaNoteVector, AgainstDouble) {
  for (int64_t rows : {0, 1, 3, 40})
    for (int64_t d : {1, 3, 7, 64, 65, 100, 128, 531, 1024}) {
      SCOPED_TRACE(fmt::format("[{}, {}]", rows, d));
      Stream stream(Device::cuda);
      const std::vector<float> v = normal(rows * d, 1, 5.0f), dz = normal(rows * d, 2);
      std::vector<float> z, norm, dv;
      const auto run = [&] {
        const OnGpu<float> z_gpu(stream, v), norm_gpu(stream, std::vector<float>(rows, NAN)), dv_gpu(stream, dz);
        const Tensor unit = z_gpu.tensor({rows, d}), gradient = dv_gpu.tensor({rows, d});
        l2_normalize(stream, unit, unit, norm_gpu.tensor({rows}));
        l2_normalize_backward(stream, gradient, unit, norm_gpu.tensor({rows}), gradient);
        z = z_gpu.download();
        norm = norm_gpu.download();
        dv = dv_gpu.download();
        return test::bytes_of(z, norm, dv);
      };
      EXPECT_TRUE(run() == run()) << "the same bits again";
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0, along = 0, along_magnitude = 0;
        for (int64_t c = 0; c < d; ++c) squares += static_cast<double>(v[r * d + c]) * v[r * d + c];
        for (int64_t c = 0; c < d; ++c) {
          along += static_cast<double>(z[r * d + c]) * dz[r * d + c];
          along_magnitude += std::fabs(static_cast<double>(z[r * d + c]) * dz[r * d + c]);
        }
        const double length = std::sqrt(squares);
        test::expect_close(norm[r], length, length, 1);
        for (int64_t c = 0; c < d; ++c) {
          const int64_t i = r * d + c;
          test::expect_close(z[i], v[i] / length, std::fabs(v[i] / length), 3);
          test::expect_close(dv[i], (dz[i] - z[i] * along) / length,
                             (std::fabs(dz[i]) + std::fabs(z[i]) * along_magnitude) / length, 6);
        }
      }
    }
}

TEST(CudaNoteVector, ZeroAndLengthsWhoseSquareLeavesF32) {
  Stream stream(Device::cuda);
  const OnGpu<float> v(stream, {3e30f, 4e30f, 3e-30f, 4e-30f, 0, 0}), norm(stream, {-1, -1, -1}),
      dz(stream, {1, 0, 1, 0, 5, 5});
  l2_normalize(stream, v.tensor({3, 2}), v.tensor({3, 2}), norm.tensor({3}));
  l2_normalize_backward(stream, dz.tensor({3, 2}), v.tensor({3, 2}), norm.tensor({3}), dz.tensor({3, 2}));
  const std::vector<float> z = v.download(), length = norm.download(), dv = dz.download();
  for (int r = 0; r < 2; ++r) {
    EXPECT_FLOAT_EQ(z[2 * r], 0.6f);
    EXPECT_FLOAT_EQ(z[2 * r + 1], 0.8f);
  }
  EXPECT_FLOAT_EQ(length[1], 5e-30f);
  EXPECT_EQ(length[2], 0.0f);
  EXPECT_EQ(z[4], 0.0f);
  EXPECT_EQ(dv[4], 0.0f) << "a zero row has no direction to turn";
}

}  // namespace
}  // namespace notellm

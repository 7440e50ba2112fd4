// InfoNCE forward and backward over N × N notes (65,536 unless told otherwise), d = 128: the memory that it takes
// beyond its inputs and outputs, the time, and a sample of rows and columns against double. Not 0 when a bound is
// broken.
//     infonce_memory [N]
#include <fmt/format.h>
#include <omp.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "kernels/infonce.h"
#include "kernels/note_vector.h"
#include "runtime/memory.h"

using namespace notellm;

namespace {

constexpr int64_t d = 128;
constexpr float tau = 3.0f;
constexpr double allowed_mb = 64, allowed_error = 1e-5;

// A line of /proc/self/status, in MB (10^6 bytes).
double status_mb(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key + ":")) return std::stod(line.substr(key.size() + 1)) * 1024 / 1e6;
  fail(ErrorKind::io, "/proc/self/status has no {}", key);
}

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double dot(const float* a, const float* b) {
  double sum = 0;
  for (int64_t c = 0; c < d; ++c) sum += static_cast<double>(a[c]) * b[c];
  return sum;
}

// Pairs close to one of 1000 centres: some negatives are hard.
void fill_notes(int64_t n, float* z) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> centres(1000 * d);
  for (float& value : centres) value = normal(random);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t c = 0; c < d; ++c) z[j * d + c] = centres[(j / 2 % 1000) * d + c] + normal(random);
}

struct Outputs {
  const double* lse;
  const float *dz_rows, *dz_all;
};

// The largest relative error of the sampled rows' loss and gradient and of the sampled columns' gradient.
double worst_error(int64_t n, const float* z, const Outputs& out, double scale) {
  const double factor = std::exp(static_cast<double>(tau));
  double worst = 0;
  auto compare = [&](const float* actual, const std::vector<double>& exact) {
    double difference = 0, size = 0;
    for (int64_t c = 0; c < d; ++c) difference += std::pow(actual[c] - exact[c], 2), size += exact[c] * exact[c];
    worst = std::max(worst, std::sqrt(difference / size));
  };
  for (int64_t i = 0; i < n; i += n / 16 + 1) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j)
      if (j != i) sum += std::exp(factor * dot(z + i * d, z + j * d));
    const double lse = std::log(sum);
    worst = std::max(worst, std::fabs(out.lse[i] / lse - 1));
    std::vector<double> row(d), column(d);
    for (int64_t j = 0; j < n; ++j) {
      if (j == i) continue;
      const double s = factor * dot(z + i * d, z + j * d), y = j == (i ^ 1);
      for (int64_t c = 0; c < d; ++c) {
        row[c] += scale * factor * (std::exp(s - lse) - y) * z[j * d + c];
        column[c] += scale * factor * (std::exp(s - out.lse[j]) - y) * z[j * d + c];  // row j's part of column i
      }
    }
    compare(out.dz_rows + i * d, row);
    compare(out.dz_all + i * d, column);
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::stoll(argv[1]) : 65536;
  Stream stream;
  Arena arena((3 * n * d + 8 * n) * 4 + (1 << 20));
  const Tensor z = arena.allocate(DType::f32, {n, d}), dz_rows = arena.allocate(DType::f32, {n, d});
  const Tensor dz_all = arena.allocate(DType::f32, {n, d}), lse = arena.allocate(DType::f64, {n});
  const Tensor positive = arena.allocate(DType::f32, {n}), similarity = arena.allocate(DType::f32, {n});
  const Tensor begin = arena.allocate(DType::i32, {n + 1}), columns = arena.allocate(DType::i32, {n});
  std::memset(z.data, 0, static_cast<size_t>(arena.used_bytes()));  // inputs and outputs are in memory before the count
  fill_notes(n, z.as<float>());
  l2_normalize(stream, z, z, similarity);
  for (int32_t i = 0; i < n; ++i) begin.as<int32_t>()[i] = columns.as<int32_t>()[i] = i;
  begin.as<int32_t>()[n] = static_cast<int32_t>(n);
  double dtau = 0;
  const float scale = 1.0f / static_cast<float>(n);

  std::ofstream("/proc/self/clear_refs") << 5 << std::flush;  // the peak starts anew
  const double before = status_mb("VmRSS");
  const Buffer memory(infonce_workspace(Device::cpu, n, n, d) * 4);
  const Tensor workspace = memory.tensor(DType::f32, {infonce_workspace(Device::cpu, n, n, d)});
  const double forward =
      seconds_of([&] { infonce(stream, z, 0, z, tau, {}, begin, columns, lse, positive, similarity, workspace); });
  const double backward = seconds_of([&] {
    infonce_backward(stream, z, 0, z, tau, {}, begin, columns, lse, scale, dz_rows, dz_all, Tensor::of(&dtau, {1}),
                     workspace);
  });
  const double grown = status_mb("VmHWM") - before;
  const double error =
      worst_error(n, z.as<float>(), {lse.as<double>(), dz_rows.as<float>(), dz_all.as<float>()}, scale);
  fmt::print("{} x {}, d {}, {} threads\n", n, n, d, omp_get_max_threads());
  fmt::print("inputs and outputs {:.0f} MB; peak over them {:.1f} MB (allowed {:.0f}), workspace {:.1f} MB of it\n",
             static_cast<double>(arena.used_bytes()) / 1e6, grown, allowed_mb,
             static_cast<double>(workspace.bytes()) / 1e6);
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * d / 1e9;
  fmt::print("forward {:.1f} s ({:.0f} GFLOP/s), backward {:.1f} s ({:.0f} GFLOP/s)\n", forward, flops / forward,
             backward, 3 * flops / backward);
  fmt::print("16 rows and columns against double: largest relative error {:.1e} (allowed {:.0e})\n", error,
             allowed_error);
  return grown <= allowed_mb && error <= allowed_error ? 0 : 1;
}

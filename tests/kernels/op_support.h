// What the tests of the ops share: reproducible inputs, f32 or bf16, and comparison with exact values.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/tensor.h"

namespace notellm::test {

inline std::vector<float> normal(int64_t n, unsigned seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0.0f, deviation);
  std::vector<float> values(n);
  for (float& value : values) value = distribution(generator);
  return values;
}

inline std::vector<int32_t> integers(int64_t n, int32_t below, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> values(n);
  for (int32_t& value : values) value = static_cast<int32_t>(generator() % static_cast<unsigned>(below));
  return values;
}

template <class T>
std::vector<T> cast(const std::vector<float>& values) {
  std::vector<T> result;
  for (float value : values) result.push_back(static_cast<T>(value));
  return result;
}

template <class T>
std::vector<double> widen(const std::vector<T>& values) {
  std::vector<double> result;
  for (T value : values) result.push_back(static_cast<double>(static_cast<float>(value)));
  return result;
}

template <class T>
Tensor view(std::vector<T>& values, std::initializer_list<int64_t> sizes) {
  Tensor t = Tensor::of(values.data(), sizes);
  EXPECT_EQ(t.size(), static_cast<int64_t>(values.size()));
  return t;
}

constexpr double f32_roundoff = 0x1p-24;
constexpr double bf16_roundoff = 0x1p-8;

// Checks `actual` of an op that computes in f32 with `roundings` roundings (one after the other, or in a sum) of values
// up to `magnitude`, and rounds once to T. A plain bf16 reference is off by up to bf16_roundoff·|exact|; twice that is
// allowed.
template <class T>
void expect_close(T actual, double exact, double magnitude, double roundings, const std::string& where = "") {
  const double own = std::is_same_v<T, bf16> ? 2 * bf16_roundoff * std::fabs(exact) : 0.0;
  const double tolerance = own + roundings * f32_roundoff * magnitude + 0x1p-126;
  ASSERT_NEAR(static_cast<double>(static_cast<float>(actual)), exact, tolerance) << where;
}

// The bytes of vectors, one after the other.
template <class... T>
std::string bytes_of(const std::vector<T>&... values) {
  return (std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)) + ...);
}

// run() returns the bytes of its results, which must not depend on the number of threads.
template <class F>
void expect_same_bits(F&& run) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::string one = run();
  for (int n : {2, 3}) {
    omp_set_num_threads(n);
    EXPECT_TRUE(run() == one) << n << " threads differ from one";
  }
  omp_set_num_threads(threads);
}

// ∂f/∂x[i] by central differences; f reads x. Off by about 1e-10 for smooth f of the size of 1.
template <class F>
double difference(std::vector<double>& x, size_t i, F&& f) {
  constexpr double h = 1e-5;
  const double kept = x[i];
  x[i] = kept + h;
  const double above = f();
  x[i] = kept - h;
  const double below = f();
  x[i] = kept;
  return (above - below) / (2 * h);
}

}  // namespace notellm::test

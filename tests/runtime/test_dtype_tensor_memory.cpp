#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "runtime/dtype.h"
#include "runtime/edit_distance.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  // bf16 has 7 fraction bits: near 1 its numbers are 2^-7 apart.
  const float ulp = std::ldexp(1.0f, -7);
  EXPECT_EQ(float(bf16(1.0f)), 1.0f);
  EXPECT_EQ(float(bf16(1.0f + 0.5f * ulp)), 1.0f);            // tie: even is below
  EXPECT_EQ(float(bf16(1.0f + 1.5f * ulp)), 1.0f + 2 * ulp);  // tie: even is above
  EXPECT_EQ(float(bf16(1.0f + 0.501f * ulp)), 1.0f + ulp);
  EXPECT_EQ(float(bf16(-(1.0f + 1.499f * ulp))), -(1.0f + ulp));
  EXPECT_EQ(bf16(-0.0f).bits, 0x8000);
}

TEST(Bf16, KeepsInfinityAndNan) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float(bf16(inf)), inf);
  EXPECT_EQ(float(bf16(-inf)), -inf);
  EXPECT_EQ(float(bf16(std::numeric_limits<float>::max())), inf);  // nearer to 2^128 than to bf16's largest
  // NaNs whose payload is in the lower half only, or would carry over into the sign.
  for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
    const bf16 rounded(std::bit_cast<float>(bits));
    EXPECT_TRUE(std::isnan(float(rounded))) << std::hex << bits;
    EXPECT_EQ(rounded.bits >> 15, bits >> 31) << std::hex << bits;
  }
}

TEST(Bf16, AllValuesSurviveTheWayThere) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = std::bit_cast<float>(bits << 16);
    if (std::isnan(value)) continue;
    ASSERT_EQ(bf16(value).bits, bits);
  }
}

TEST(Bf16, NearestAmongNeighbours) {
  std::mt19937 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()) & 0xbfffffffu);  // finite
    const uint32_t low = std::bit_cast<uint32_t>(value) & 0xffff0000u;
    const double below = std::bit_cast<float>(low), above = std::bit_cast<float>(low + 0x10000u);
    const double error = std::abs(double(float(bf16(value))) - value);
    ASSERT_EQ(error, std::min(std::abs(below - value), std::abs(above - value))) << value;
  }
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::i32), 4);
  EXPECT_EQ(size_of(DType::i64), 8);
  EXPECT_EQ(size_of(DType::f64), 8);
  EXPECT_STREQ(name_of(DType::bf16), "bf16");
}

TEST(Tensor, ShapesSlicesAndReshapes) {
  float values[12];
  const Tensor t = Tensor::of(values, {2, 3, 2});
  EXPECT_EQ(t.rows(), 2);
  EXPECT_EQ(t.cols(), 6);
  EXPECT_EQ(t.size(), 12);
  EXPECT_EQ(t.bytes(), 48);
  EXPECT_EQ(describe(t), "f32 [2, 3, 2]");
  const Tensor second = t.slice(1, 2);
  EXPECT_EQ(second.as<float>(), values + 6);
  EXPECT_EQ(second.rows(), 1);
  EXPECT_EQ(t.slice(2, 2).size(), 0);
  EXPECT_EQ(t.reshape({4, 3}).cols(), 3);
  EXPECT_EQ(Tensor::of(values, {12}).cols(), 1);
  EXPECT_EQ(t.span<float>().size(), 12u);
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(Tensor().size(), 0);
}

TEST(Tensor, RefusesWhatDoesNotFit) {
  float values[12];
  const Tensor t = Tensor::of(values, {4, 3});
  EXPECT_ERROR(internal, "tensor holds f32, not i32", t.as<int32_t>());
  EXPECT_ERROR(internal, "rows 2..5 of 4", t.slice(2, 5));
  EXPECT_ERROR(internal, "rows 3..2 of 4", t.slice(3, 2));
  EXPECT_ERROR(internal, "reshape of 12 elements to 10", t.reshape({5, 2}));
  EXPECT_ERROR(internal, "tensor of 4 dimensions", Tensor(values, DType::f32, {1, 1, 3, 4}));
}

TEST(Buffer, IsZeroAlignedAndMovable) {
  Buffer buffer(5 << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  Tensor t = buffer.tensor(DType::f32, {5, 1 << 18});
  for (float value : t.span<float>()) ASSERT_EQ(value, 0);
  t.as<float>()[t.size() - 1] = 7;
  Buffer other = std::move(buffer);
  EXPECT_EQ(other.tensor(DType::f32, {5 << 18}).as<float>()[(5 << 18) - 1], 7);
  EXPECT_ERROR(internal, "f32 [6, 262144] does not fit a buffer of 5242880 bytes",
               other.tensor(DType::f32, {6, 1 << 18}));
  EXPECT_EQ(Buffer(0).data(), nullptr);
  EXPECT_ERROR(internal, "buffer of -1 bytes", Buffer(-1));
}

TEST(Arena, IsAStack) {
  Arena arena(1 << 20);
  const Tensor a = arena.allocate(DType::bf16, {3, 5});  // 30 bytes, which take 64
  const int64_t mark = arena.mark();
  const Tensor b = arena.allocate(DType::f32, {16});
  EXPECT_EQ(static_cast<char*>(b.data) - static_cast<char*>(a.data), 64);
  EXPECT_EQ(arena.used_bytes(), 128);
  arena.rewind(mark);
  EXPECT_EQ(arena.allocate(DType::f32, {16}).data, b.data);
  arena.rewind(0);
  EXPECT_EQ(arena.used_bytes(), 0);
  EXPECT_EQ(arena.peak_bytes(), 128);
  EXPECT_NO_THROW(arena.allocate(DType::f64, {1 << 17}));  // exactly full
  EXPECT_ERROR(internal, "arena is full", arena.allocate(DType::bf16, {1}));
}

TEST(EditDistance, CountsEdits) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("dim", "dim"), 0);
  EXPECT_EQ(edit_distance("dim", "dims"), 1);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("trian", "train"), 1);
}

TEST(Error, CarriesKindAndValues) {
  EXPECT_ERROR(data, "notes.jsonl:3: no id", fail(ErrorKind::data, "{}:{}: no id", "notes.jsonl", 3));
  EXPECT_ERROR(internal, "rows 2 [", NOTELLM_CHECK(1 + 1 == 3, "rows {}", 2));
  EXPECT_EQ(static_cast<int>(ErrorKind::peer), 6);
}

}  // namespace
}  // namespace notellm

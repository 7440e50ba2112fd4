#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/files.h"
#include "runtime/half.h"
#include "runtime/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"
#include "tests/support/write_safetensors.h"

namespace notellm {
namespace {
namespace fs = std::filesystem;
using test::write_safetensors;

// A file of this header and data.
std::string make_file(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  const test::TempDir folder;
  std::vector<float> a = {1, 2, 3, 4, 5, 6};
  std::vector<bf16> b = {bf16(1), bf16(-2), bf16(3)};
  std::vector<int64_t> c = {7};
  std::vector<int32_t> d = {8, 9};
  std::vector<double> e = {0.1};
  std::vector<f16> f = {to_f16(-0.5f), to_f16(70000)};
  write_safetensors(folder / "x",
                    {{"a", Tensor::of(a.data(), {2, 3})},
                     {"b", Tensor::of(b.data(), {3})},
                     {"c", Tensor::of(c.data(), {1, 1, 1})},
                     {"d", Tensor::of(d.data(), {2})},
                     {"e", Tensor::of(e.data(), {1})},
                     {"f", Tensor::of(f.data(), {2})},
                     {"none", Tensor::of(a.data(), {0, 3})}},
                    {{"format", "pt"}, {"note", "词\n"}});
  const SafetensorsFile file(folder / "x");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"note", "词\n"}}));
  EXPECT_EQ(describe(file.at("a")), "f32 [2, 3]");
  EXPECT_TRUE(std::ranges::equal(file.at("a").span<float>(), a));
  EXPECT_EQ(describe(file.at("b")), "bf16 [3]");
  EXPECT_EQ(float(file.at("b").as<bf16>()[1]), -2);
  EXPECT_EQ(describe(file.at("c")), "i64 [1, 1, 1]");
  EXPECT_EQ(file.at("c").as<int64_t>()[0], 7);
  EXPECT_EQ(file.at("d").as<int32_t>()[1], 9);
  EXPECT_EQ(file.at("e").as<double>()[0], 0.1);
  EXPECT_EQ(to_float(file.at("f").as<f16>()[0]), -0.5f);
  EXPECT_EQ(to_float(file.at("f").as<f16>()[1]), INFINITY);
  EXPECT_EQ(describe(file.at("none")), "f32 [0, 3]");
  for (const NamedTensor& named : file.tensors())
    EXPECT_EQ(reinterpret_cast<uintptr_t>(named.tensor.data) % size_of(named.tensor.dtype), 0u) << named.name;
}

// All 65,536 of them: exact both ways, by the definition of the format.
TEST(Safetensors, HalfPrecision) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 half{static_cast<uint16_t>(bits)};
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31 && fraction) {
      EXPECT_TRUE(std::isnan(to_float(half)));
      continue;
    }
    const double size = exponent == 31  ? INFINITY
                        : exponent == 0 ? std::ldexp(fraction, -24)
                                        : std::ldexp(1024 + fraction, static_cast<int>(exponent) - 25);
    ASSERT_EQ(to_float(half), (bits >> 15 ? -1 : 1) * size) << bits;
    ASSERT_EQ(to_f16(to_float(half)).bits, bits);
  }
  // Halfway between any two neighbours the even one is taken, and beside it the nearer.
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const f16 low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits + 1)};
    const float middle = (to_float(low) + to_float(high)) / 2;
    ASSERT_EQ(to_f16(middle).bits, bits % 2 ? bits + 1 : bits);
    ASSERT_EQ(to_f16(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(to_f16(-std::nextafter(middle, 1e9f)).bits, (bits + 1) | 0x8000);
  }
  EXPECT_EQ(to_f16(std::nextafter(65520.0f, 0.0f)).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520).bits, 0x7c00);
  EXPECT_EQ(to_f16(1 + 0x1p-11f).bits, 0x3c00);  // halfway: to even
  EXPECT_EQ(to_f16(1 + 0x3p-11f).bits, 0x3c02);
}

TEST(Safetensors, ExactBytes) {
  const test::TempDir folder;
  float one = 1;
  write_safetensors(folder / "x", {{"w", Tensor::of(&one, {1})}});
  const std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  EXPECT_EQ(read_file(folder / "x"),
            make_file(header + std::string((8 - header.size() % 8) % 8, ' '), std::string("\0\0\x80\x3f", 4)));
}

TEST(Safetensors, OneDtypeKeepsItsOrderAndNoTensorIsAFile) {
  const test::TempDir folder;
  float values[3] = {1, 2, 3};
  write_safetensors(
      folder / "x",
      {{"z", Tensor::of(values, {1})}, {"a", Tensor::of(values + 1, {1})}, {"m", Tensor::of(values + 2, {1})}});
  const SafetensorsFile file(folder / "x");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name + file.tensors()[1].name + file.tensors()[2].name, "zam");
  write_safetensors(folder / "y", {});
  EXPECT_TRUE(SafetensorsFile(folder / "y").tensors().empty());
}

TEST(Safetensors, MovedFilesKeepTheirTensors) {
  const test::TempDir folder;
  float one = 1;
  write_safetensors(folder / "x", {{"w", Tensor::of(&one, {1})}});
  SafetensorsFile file(folder / "x");
  const SafetensorsFile moved(std::move(file));
  EXPECT_EQ(moved.at("w").as<float>()[0], 1);
}

TEST(Safetensors, ReadsAScalarAndMisalignedData) {
  const test::TempDir folder;
  float pi = 3.14f;
  const std::string data = "ab" + std::string(reinterpret_cast<char*>(&pi), 4);
  for (const char* blanks : {"", " ", "  ", "   "}) {
    write_file(folder / "x", make_file(R"({"h":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},
                                         "s":{"dtype":"F32","shape":[],"data_offsets":[2,6]}})" +
                                           std::string(blanks),
                                       data));
    const SafetensorsFile file(folder / "x");
    EXPECT_EQ(describe(file.at("s")), "f32 [1]");
    EXPECT_EQ(file.at("s").as<float>()[0], pi);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at("s").data) % 4, 0u);
  }
}

TEST(Safetensors, DamagedFilesAreRefusedByName) {
  const test::TempDir folder;
  const fs::path path = folder / "damaged.safetensors";
  const auto expect = [&](const std::string& content, const std::string& message) {
    write_file(path, content);
    EXPECT_ERROR(checkpoint, path.string() + ": " + message, SafetensorsFile{path});
  };
  const auto entry = [](const std::string& fields) { return make_file("{\"w\":" + fields + "}", "01234567"); };
  expect("", "has only 0 bytes");
  expect("1234567", "has only 7 bytes");
  expect(make_file("{}", "").substr(0, 9), "claims a header of 2 bytes, in a file of 9 bytes");
  expect(std::string(16, '\xff'), "claims a header of 18446744073709551615 bytes, in a file of 16 bytes");
  expect(make_file("", ""), "the header is not JSON");
  expect(make_file("{\"w\":", ""), "the header is not JSON");
  expect(make_file("{\"\xff\":1}", ""), "the header is not JSON");
  expect(make_file("[]", ""), "the header is not a JSON object");
  expect(make_file("{}", "x"), "1 bytes after the last tensor belong to no tensor");
  expect(make_file(R"({"__metadata__":{"a":1}})", ""), "__metadata__ must be texts named by texts");
  expect(make_file(R"({"__metadata__":"a"})", ""), "__metadata__ must be texts named by texts");
  expect(entry("3"), "tensor w needs dtype, shape and data_offsets");
  expect(entry(R"({"dtype":"F32","shape":[2]})"), "tensor w needs dtype, shape and data_offsets");
  expect(entry(R"({"dtype":5,"shape":[2],"data_offsets":[0,8]})"), "w has a dtype that is no text");
  expect(entry(R"({"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]})"),
         "tensor w has dtype F8_E4M3, which is not supported; convert it to F32, BF16 or F16");
  expect(entry(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), "tensor w: shape must be a list of integers");
  expect(entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "tensor w: shape must be a list of integers");
  expect(entry(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), "tensor w: shape must be a list of integers");
  expect(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,9]})"), "tensor w: data_offsets must be [begin, end]");
  expect(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), "tensor w: data_offsets must be [begin, end]");
  expect(entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), "tensor w: F32 [3] does not take the 8 bytes");
  expect(entry(R"({"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,0]})"),
         "tensor w: F32 [4611686018427387904, 2] does not take the 0 bytes");
  expect(entry(R"({"dtype":"F32","shape":[1,1,1,2],"data_offsets":[0,8]})"), "tensor w has 4 dimensions");
  expect(entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})"),
         "tensor w ends at byte 16 of the data, which has 8 bytes: the file is cut short");
  expect(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), "4 bytes before tensor w belong to no tensor");
  expect(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
         "4 bytes after the last tensor belong to no tensor");
  expect(
      make_file(
          R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          "01234567"),
      "tensor w begins at byte 4, inside the tensor before it");
  expect(
      make_file(
          R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          "01234567"),
      "tensor w is there twice");
}

TEST(Safetensors, EveryTruncationOfAGoodFileIsRefused) {
  const test::TempDir folder;
  float values[4] = {};
  write_safetensors(folder / "good", {{"w", Tensor::of(values, {4})}});
  const std::string content = read_file(folder / "good");
  for (size_t bytes = 0; bytes < content.size(); ++bytes) {
    write_file(folder / "cut", content.substr(0, bytes));
    EXPECT_THROW(SafetensorsFile{folder / "cut"}, Error) << bytes;
  }
}

TEST(Safetensors, OtherErrors) {
  const test::TempDir folder;
  float one = 1;
  EXPECT_ERROR(io, "cannot read " + (folder / "none").string() + ": No such file", SafetensorsFile{folder / "none"});
  EXPECT_ERROR(io, "not a regular file", SafetensorsFile{folder.path()});
  EXPECT_ERROR(internal, "cannot write tensor f32 [1] as w",
               write_safetensors(folder / "x", {{"w", Tensor::of(&one, {1})}, {"w", Tensor::of(&one, {1})}}));
  write_safetensors(folder / "x",
                    {{"model.norm.weight", Tensor::of(&one, {1})}, {"lm_head.weight", Tensor::of(&one, {1})}});
  const SafetensorsFile file(folder / "x");
  EXPECT_ERROR(checkpoint,
               (folder / "x").string() + ": has no tensor model.norm.weights; the nearest name is model.norm.weight",
               file.at("model.norm.weights"));
  write_safetensors(folder / "y", {});
  EXPECT_ERROR(checkpoint, "has no tensor w, nor any other", SafetensorsFile(folder / "y").at("w"));
}

TEST(Safetensors, ReadsAFileOfAnotherWriter) {
  NOTELLM_NEEDS_SHARED("models/stories260K/model.safetensors");
  const SafetensorsFile file(test::shared_path("models/stories260K/model.safetensors"));
  EXPECT_EQ(describe(file.at("model.embed_tokens.weight")), "f32 [512, 64]");
  EXPECT_EQ(describe(file.at("model.norm.weight")), "f32 [64]");
}

}  // namespace
}  // namespace notellm

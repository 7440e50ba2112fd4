// Streams, events, uploads and downloads on a GPU: what arrives, and that softgpu, which checks the order of all works,
// finds nothing.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "runtime/transfer.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

template <class T>
Tensor view(std::vector<T>& v) {
  return Tensor::of(v.data(), {static_cast<int64_t>(v.size())});
}

template <class T>
std::vector<T> contents(Stream& stream, Tensor t) {
  std::vector<T> host(t.size());
  copy(stream, t, view(host));
  stream.synchronize();
  return host;
}

class TransferCuda : public testing::Test {
 protected:
  static void SetUpTestSuite() { choose_device(Device::cuda, 0, 1); }
};

TEST_F(TransferCuda, CopiesAndZeroes) {
  Stream stream(Device::cuda);
  std::vector<float> host = {1, 2, 3};
  const Buffer buffer(12, Memory::device);
  const Tensor t = buffer.tensor(DType::f32, {3});
  copy(stream, view(host), t);
  EXPECT_EQ(contents<float>(stream, t), host);
  set_zero(stream, t.slice(1, 2));
  EXPECT_EQ(contents<float>(stream, t), (std::vector<float>{1, 0, 3}));
}

TEST_F(TransferCuda, OnDeviceIsACopy) {
  Buffer host(64);
  for (int i = 0; i < 16; ++i) static_cast<int32_t*>(host.data())[i] = i * i;
  const Buffer device = on_device(Device::cuda, std::move(host));
  Stream stream(Device::cuda);
  EXPECT_EQ(contents<int32_t>(stream, device.tensor(DType::i32, {16}))[15], 225);
}

// Two uploads in turn, each of another size, with work on another stream that reads one while the next is sent.
TEST_F(TransferCuda, UploadsTakeTurns) {
  Stream stream(Device::cuda);
  Upload uploads[] = {Upload(Device::cuda), Upload(Device::cuda)};
  for (int round = 0; round < 6; ++round) {
    Upload& upload = uploads[round % 2];
    std::vector<int32_t> a(static_cast<size_t>(1 + 100 * round));
    std::vector<float> b(3, static_cast<float>(round)), none;
    std::iota(a.begin(), a.end(), round);
    Tensor on_a, on_b, on_none;
    upload.send({{view(a), &on_a}, {view(b), &on_b}, {view(none), &on_none}});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(on_b.data) % 256, 0u);
    EXPECT_EQ(on_none.rows(), 0);
    const std::vector<int32_t> sent = a;
    std::ranges::fill(a, -1);  // the host's array is free again
    upload.wait(stream);
    const Buffer result(static_cast<int64_t>(sent.size()) * 4, Memory::device);
    const Tensor copied = result.tensor(DType::i32, {on_a.rows()});
    copy(stream, on_a, copied);
    EXPECT_EQ(contents<float>(stream, on_b), b);
    upload.done(stream);
    EXPECT_EQ(contents<int32_t>(stream, copied), sent);
  }
}

TEST_F(TransferCuda, DownloadsArriveWhileTheStreamGoesOn) {
  Stream stream(Device::cuda);
  Download download(Device::cuda);
  std::vector<double> numbers = {0.5, 1.5};
  std::vector<float> more = {7};
  const Buffer buffer(64, Memory::device);
  const Tensor t = buffer.tensor(DType::f64, {2});
  for (int round = 0; round < 3; ++round) {
    numbers[0] = round;
    copy(stream, view(numbers), t);
    const std::vector<Tensor> found = download.fetch(stream, {t, t.slice(1, 2)});
    set_zero(stream, t);
    download.wait();
    EXPECT_EQ(found[0].as<double>()[0], round);
    EXPECT_EQ(found[1].as<double>()[0], 1.5);
  }
}

TEST_F(TransferCuda, EventsOrderStreams) {
  Stream first(Device::cuda), second(Device::cuda);
  Event done(Device::cuda), never(Device::cuda);
  never.wait(second);  // nothing recorded: nothing to wait for
  never.synchronize();
  std::vector<float> host(1000, 2.0f);
  const Buffer a(4000, Memory::device), b(4000, Memory::device);
  copy(first, view(host), a.tensor(DType::f32, {1000}));
  done.record(first);
  done.wait(second);
  copy(second, a.tensor(DType::f32, {1000}), b.tensor(DType::f32, {1000}));
  EXPECT_EQ(contents<float>(second, b.tensor(DType::f32, {1000})), host);
}

TEST(TransferCpu, ViewsAreTheHosts) {
  Upload upload;
  std::vector<int32_t> a = {1, 2};
  Tensor t;
  upload.send({{view(a), &t}});
  EXPECT_EQ(t.data, a.data());
  Stream stream;
  Download download;
  EXPECT_EQ(download.fetch(stream, {view(a)})[0].as<int32_t>()[1], 2);
  download.wait();
}

}  // namespace
}  // namespace notellm

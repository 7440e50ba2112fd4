// The collectives of device memory against those of host memory, for any number of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "runtime/communicator.h"
#include "runtime/memory.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

class CommunicatorCuda : public testing::Test {
 protected:
  Communicator comm = Communicator::world();
  const int rank = comm.rank(), size = comm.size();
  Stream stream;
  CommunicatorCuda() {
    choose_device(Device::cuda, comm.local_rank(), comm.local_size());
    stream = Stream(Device::cuda);
  }

  // Small integers, whose sums are exact in any order.
  static std::vector<float> values_of(int r, int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>((i * 7 + r * 13) % 101 - 50);
    return values;
  }
  static Tensor view(std::vector<float>& v, int64_t cols) {
    return Tensor::of(v.data(), {static_cast<int64_t>(v.size()) / cols, cols});
  }
  Buffer upload(const std::vector<float>& values) {
    Buffer host(static_cast<int64_t>(values.size()) * 4);
    std::copy(values.begin(), values.end(), static_cast<float*>(host.data()));
    return on_device(Device::cuda, std::move(host));
  }
  std::vector<float> contents(Tensor t) {
    std::vector<float> host(t.size());
    copy(stream, t, Tensor::of(host.data(), {t.size()}));
    stream.synchronize();
    return host;
  }
  // Equal rows, then ragged ones with a rank that has none.
  std::vector<int64_t> rows(bool ragged) const {
    std::vector<int64_t> rows;
    for (int r = 0; r < size; ++r) rows.push_back(!ragged ? 5 : r % 3 == 1 ? 0 : 4 + r);
    return rows;
  }
};

TEST_F(CommunicatorCuda, SumEqualsTheHosts) {
  for (int64_t n : {1, 3, 1000, 70'001}) {
    std::vector<float> host = values_of(rank, n);
    const Buffer device = upload(host);
    const Tensor t = device.tensor(DType::f32, {n});
    comm.all_reduce_sum("test.sum", view(host, 1));
    comm.all_reduce_sum(stream, "test.sum", t);
    ASSERT_EQ(contents(t), host) << n;
  }
}

TEST_F(CommunicatorCuda, GatherAndReduceScatterEqualTheHosts) {
  constexpr int64_t cols = 3;
  for (bool ragged : {false, true}) {
    const std::vector<int64_t> rows_of = rows(ragged);
    const int64_t total = std::accumulate(rows_of.begin(), rows_of.end(), int64_t{0});
    std::vector<float> mine = values_of(rank, rows_of[rank] * cols), all(static_cast<size_t>(total * cols));
    const Buffer mine_on = upload(mine), all_on(total * cols * 4, Memory::device);
    const Tensor mine_t(mine_on.data(), DType::f32, {rows_of[rank], cols}),
        all_t = all_on.tensor(DType::f32, {total, cols});
    comm.all_gather_rows("test.gather", view(mine, cols), rows_of, view(all, cols));
    comm.all_gather_rows(stream, "test.gather", mine_t, rows_of, all_t);
    ASSERT_EQ(contents(all_t), all) << ragged;

    std::vector<float> terms = values_of(rank + 5, total * cols), sums(mine.size());
    const Buffer terms_on = upload(terms);
    comm.reduce_scatter_rows("test.scatter", view(terms, cols), rows_of, view(sums, cols));
    comm.reduce_scatter_rows(stream, "test.scatter", terms_on.tensor(DType::f32, {total, cols}), rows_of, mine_t);
    ASSERT_EQ(contents(mine_t), sums) << ragged;
  }
}

// The order that a step has: a collective on one stream, then on another, ordered by events.
TEST_F(CommunicatorCuda, CollectivesOnTwoStreams) {
  Stream other(Device::cuda);
  Event ready(Device::cuda), done(Device::cuda);
  const Buffer device = upload(values_of(rank, 100));
  const Tensor t = device.tensor(DType::f32, {100});
  std::vector<float> expected = values_of(rank, 100);
  comm.all_reduce_sum(stream, "test.first", t.slice(50, 100));
  comm.all_reduce_sum("test.first", Tensor::of(expected.data() + 50, {50}));
  ready.record(stream);
  ready.wait(other);
  comm.all_reduce_sum(other, "test.second", t.slice(0, 50));
  comm.all_reduce_sum("test.second", Tensor::of(expected.data(), {50}));
  done.record(other);
  done.wait(stream);
  EXPECT_EQ(contents(t), expected);
}

// As a tensor group does it: bf16, each rank's rows in their place. Whole numbers, so that no sum is rounded.
TEST_F(CommunicatorCuda, GathersAndReducesBf16InPlace) {
  for (bool ragged : {false, true}) {
    const std::vector<int64_t> rows_of = rows(ragged);
    const int64_t total = std::accumulate(rows_of.begin(), rows_of.end(), int64_t{0});
    const int64_t begin = std::accumulate(rows_of.begin(), rows_of.begin() + rank, int64_t{0});
    std::vector<bf16> all(static_cast<size_t>(2 * total));
    for (size_t i = 0; i < all.size(); ++i) all[i] = bf16(static_cast<float>(i % 20 + static_cast<size_t>(rank)));
    const Buffer device(2 * total * 2 + 16, Memory::device);
    const Tensor on = Tensor(device.data(), DType::bf16, {total, 2}), own = on.slice(begin, begin + rows_of[rank]);
    copy(stream, Tensor::of(all.data(), {total, 2}), on);
    comm.reduce_scatter_rows(stream, "test.reduce", on, rows_of, own);
    comm.all_gather_rows(stream, "test.gather", own, rows_of, on);
    copy(stream, on, Tensor::of(all.data(), {total, 2}));
    stream.synchronize();
    for (size_t i = 0; i < all.size(); ++i)
      ASSERT_EQ(static_cast<float>(all[i]), static_cast<float>(i % 20 * size + size * (size - 1) / 2)) << i;
  }
}

TEST_F(CommunicatorCuda, RefusesWrongShapes) {
  const Buffer device(64, Memory::device);
  const std::vector<int64_t> rows_of(static_cast<size_t>(size), 1);
  EXPECT_ERROR(internal, "where 1 rows are agreed",
               comm.all_gather_rows(stream, "test.x", device.tensor(DType::f32, {2, 2}), rows_of,
                                    device.tensor(DType::f32, {size, 2})));
}

}  // namespace
}  // namespace notellm

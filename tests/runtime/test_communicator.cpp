#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/communicator.h"
#include "tests/support/expect_error.h"

namespace notellm {
namespace {

// Every test holds for any number of ranks, one included.
class CommunicatorTest : public testing::Test {
 protected:
  Communicator comm = Communicator::world();
  const int rank = comm.rank(), size = comm.size();

  // What rank r has, known to all ranks: numbers whose sum depends on the order of its terms.
  template <class T>
  static std::vector<T> values_of(int r, int64_t n) {
    uint64_t random = static_cast<uint64_t>(1000 * n + r);
    std::vector<T> values(static_cast<size_t>(n));
    for (T& value : values) {
      random = random * 6364136223846793005u + 1442695040888963407u;  // its high bits are good
      const double mantissa = static_cast<double>(random >> 11) * 0x1p-53 - 0.5;
      value = static_cast<T>(mantissa * static_cast<double>(1000 << (random >> 59 & 15)));
    }
    return values;
  }
  // By a plain loop, in the order of ranks.
  template <class T>
  std::vector<T> sum_of_all(int64_t n) const {
    std::vector<T> sum = values_of<T>(0, n);
    for (int r = 1; r < size; ++r) {
      const std::vector<T> other = values_of<T>(r, n);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    }
    return sum;
  }
  template <class T>
  static Tensor view(std::vector<T>& values) {
    return Tensor::of(values.data(), {static_cast<int64_t>(values.size())});
  }
  template <class T>
  void check_all_reduce(int64_t n) {
    std::vector<T> values = values_of<T>(rank, n);
    comm.all_reduce_sum("test.sum", view(values));
    ASSERT_EQ(values, sum_of_all<T>(n)) << n << " elements";
  }
  // Rows of each rank, some none.
  std::vector<int64_t> ragged_rows(int64_t scale) const {
    std::vector<int64_t> rows;
    for (int r = 0; r < size; ++r) rows.push_back(size > 1 && r % 3 == 1 ? 0 : scale + r);
    return rows;
  }
};

TEST_F(CommunicatorTest, RanksAreNumbered) {
  std::vector<int64_t> expected(static_cast<size_t>(size));
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(comm.all_gather("test.ranks", rank), expected);
  EXPECT_EQ(comm.local_size(), size);  // the tests run on one host
  EXPECT_EQ(comm.local_rank(), rank);
}

TEST_F(CommunicatorTest, SumIsThatOfAPlainLoopToTheBit) {
  for (int64_t n : {0, 1, 2, 3, 5, 1023, 4099}) {
    check_all_reduce<float>(n);
    check_all_reduce<double>(n);
    check_all_reduce<int32_t>(n);
    check_all_reduce<int64_t>(n);
  }
  check_all_reduce<float>(1'100'003);  // several pieces of 4 MB
}

TEST_F(CommunicatorTest, SumDoesNotDependOnTheMessagesSize) {
  // The same numbers at the end of a longer tensor.
  const std::vector<float> tail = values_of<float>(rank, 777);
  std::vector<float> alone = tail, longer(1'200'000, 1.0f);
  std::ranges::copy(tail, longer.end() - 777);
  comm.all_reduce_sum("test.alone", view(alone));
  comm.all_reduce_sum("test.longer", view(longer));
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), longer.end() - 777));
}

TEST_F(CommunicatorTest, IntegerSumsWrap) {
  std::vector<int32_t> value = {std::numeric_limits<int32_t>::max()};
  comm.all_reduce_sum("test.wrap", view(value));
  EXPECT_EQ(value[0], static_cast<int32_t>(0x7fffffffu * static_cast<unsigned>(size)));
}

TEST_F(CommunicatorTest, Max) {
  EXPECT_EQ(comm.max("test.max", int64_t{-7} - rank), -7);
  EXPECT_EQ(comm.max("test.max", int64_t{rank} << 40), int64_t{size - 1} << 40);
  EXPECT_EQ(comm.max("test.max", 0.5 * rank), 0.5 * (size - 1));
  EXPECT_TRUE(std::isnan(comm.max("test.max", rank == size - 1 ? std::nan("") : 1.0)));
}

TEST_F(CommunicatorTest, GathersRaggedRows) {
  for (int64_t scale : {0, 1, 2, 100}) {
    const std::vector<int64_t> rows_of = ragged_rows(scale);
    std::vector<int32_t> expected, mine;
    for (int r = 0; r < size; ++r) {
      const std::vector<int32_t> rows = values_of<int32_t>(r, 3 * rows_of[r]);
      expected.insert(expected.end(), rows.begin(), rows.end());
      if (r == rank) mine = rows;
    }
    std::vector<int32_t> all(expected.size());
    const Tensor mine_rows = rows_of[rank] ? Tensor::of(mine.data(), {rows_of[rank], 3}) : Tensor();
    comm.all_gather_rows("test.gather", mine_rows, rows_of,
                         Tensor::of(all.data(), {static_cast<int64_t>(all.size()) / 3, 3}));
    ASSERT_EQ(all, expected) << scale;
  }
}

TEST_F(CommunicatorTest, GathersInPlaceAndAnyType) {
  std::vector<int64_t> rows_of(static_cast<size_t>(size), 2);
  std::vector<bf16> all(static_cast<size_t>(2 * size), bf16(0));
  const Tensor whole = Tensor::of(all.data(), {2 * size, 1});
  all[2 * rank] = bf16(static_cast<float>(rank));
  all[2 * rank + 1] = bf16(-1);
  comm.all_gather_rows("test.in_place", whole.slice(2 * rank, 2 * rank + 2), rows_of, whole);
  for (int r = 0; r < size; ++r) {
    EXPECT_EQ(float(all[2 * r]), r);
    EXPECT_EQ(float(all[2 * r + 1]), -1);
  }
}

TEST_F(CommunicatorTest, ReduceScatterGivesEachRankItsRowsOfTheSum) {
  for (int64_t scale : {0, 1, 100, 300'000}) {  // the last in several pieces
    const std::vector<int64_t> rows_of = ragged_rows(scale);
    const int64_t total = std::accumulate(rows_of.begin(), rows_of.end(), int64_t{0});
    const int64_t begin = std::accumulate(rows_of.begin(), rows_of.begin() + rank, int64_t{0});
    std::vector<float> all = values_of<float>(rank, 2 * total);
    std::vector<float> mine(static_cast<size_t>(2 * rows_of[rank]));
    comm.reduce_scatter_rows("test.scatter", Tensor::of(all.data(), {total, 2}), rows_of,
                             Tensor::of(mine.data(), {rows_of[rank], 2}));
    const std::vector<float> sum = sum_of_all<float>(2 * total);
    ASSERT_TRUE(std::equal(mine.begin(), mine.end(), sum.begin() + 2 * begin)) << scale;
    ASSERT_EQ(all, values_of<float>(rank, 2 * total)) << "the input has changed";
  }
}

// <gather(x), y> summed over ranks = <x, reduce_scatter(y)> summed over ranks, in integers exactly.
TEST_F(CommunicatorTest, ReduceScatterIsTheTransposeOfGather) {
  const std::vector<int64_t> rows_of = ragged_rows(5);
  const int64_t total = std::accumulate(rows_of.begin(), rows_of.end(), int64_t{0});
  std::vector<int64_t> x = values_of<int64_t>(rank, rows_of[rank]), gathered(static_cast<size_t>(total));
  std::vector<int64_t> y = values_of<int64_t>(rank + 50, total), scattered(x.size());
  comm.all_gather_rows("test.gather", view(x), rows_of, view(gathered));
  comm.reduce_scatter_rows("test.scatter", view(y), rows_of, view(scattered));
  std::vector<int64_t> products = {std::inner_product(gathered.begin(), gathered.end(), y.begin(), int64_t{0}),
                                   std::inner_product(x.begin(), x.end(), scattered.begin(), int64_t{0})};
  comm.all_reduce_sum("test.products", view(products));
  EXPECT_EQ(products[0], products[1]);
  EXPECT_NE(products[0], 0);
}

TEST_F(CommunicatorTest, BroadcastsTensorsAndTexts) {
  for (int root = 0; root < size; ++root) {
    std::vector<int32_t> values(5'000'000, rank);  // longer than one message
    values.back() = 10 + rank;
    comm.broadcast("test.tensor", view(values), root);
    ASSERT_EQ(std::ranges::count(values, root), 4'999'999);
    ASSERT_EQ(values.back(), 10 + root);
    EXPECT_EQ(comm.broadcast("test.text", "from " + std::string(static_cast<size_t>(rank), 'x'), root),
              "from " + std::string(static_cast<size_t>(root), 'x'));
    EXPECT_EQ(comm.broadcast("test.empty", rank == root ? "" : "other", root), "");
  }
}

TEST_F(CommunicatorTest, LongMessagesAreCut) {
  std::vector<int64_t> rows_of(static_cast<size_t>(size), 0);
  rows_of[size - 1] = 5'000'003;  // 20 MB
  std::vector<int32_t> mine(rank == size - 1 ? 5'000'003 : 0, 3), all(5'000'003, 0);
  if (!mine.empty()) mine.back() = 4;
  comm.all_gather_rows("test.long", view(mine), rows_of, view(all));
  EXPECT_EQ(std::ranges::count(all, 3), 5'000'002);
  EXPECT_EQ(all.back(), 4);
}

TEST_F(CommunicatorTest, TheFirstTextThatIsNotEmpty) {
  EXPECT_EQ(comm.first_text("test.none", ""), "");
  for (int from = 0; from < size; ++from)
    EXPECT_EQ(comm.first_text("test.text", rank < from ? "" : fmt::format("of {}", rank)), fmt::format("of {}", from));
}

TEST_F(CommunicatorTest, RequireEqual) {
  EXPECT_NO_THROW(comm.require_equal("test.equal", "configuration", "a: 1\nb: 2\n"));
  if (size == 1) return;  // one rank equals itself
  const auto text = [this](int odd) { return rank == odd ? "a: 1\nb: 3\nc: 4\n" : "a: 1\nb: 2\nc: 4\n"; };
  EXPECT_ERROR(peer, "rank 1 has another configuration than rank 0: 'b: 3', not 'b: 2'",
               comm.require_equal("test.equal", "configuration", text(1)));
  EXPECT_ERROR(peer, "rank 1 has another configuration than rank 0: 'b: 2', not 'b: 3'",
               comm.require_equal("test.equal", "configuration", text(0)));
  EXPECT_ERROR(peer, fmt::format("rank {} has another x than rank 0: 'b'", size - 1),
               comm.require_equal("test.equal", "x", rank == size - 1 ? "b" : ""));
  EXPECT_ERROR(peer, "than rank 0: 'x: 1', not 'a: 1'",
               comm.require_equal("test.equal", "x", rank == 1 ? "x: 1\nb: 2\n" : "a: 1\nb: 2\n"));
  EXPECT_EQ(comm.max("test.after", int64_t{rank}), size - 1);  // the communicator is still good
}

// A gather sends the rank's rows to each other rank, a reduce-scatter to each the rows that are not its own; an
// all-reduce is both, a broadcast costs its root alone.
TEST_F(CommunicatorTest, CountsTheBytesThatLeaveTheRank) {
  using Bytes = std::map<std::string, int64_t>;
  EXPECT_EQ(comm.bytes_sent(), Bytes());
  const int64_t n = 2 * size, others = size - 1;
  std::vector<double> values(n);
  const std::vector<int64_t> rows_of(static_cast<size_t>(size), 2);
  comm.all_reduce_sum("test.sum", view(values));
  comm.all_gather_rows("test.gather", view(values).slice(2 * rank, 2 * rank + 2), rows_of, view(values));
  comm.reduce_scatter_rows("test.scatter", view(values), rows_of, view(values).slice(2 * rank, 2 * rank + 2));
  comm.broadcast("test.broadcast", view(values), 0);
  Bytes expected = {{"test.gather", 16 * others}, {"test.scatter", 16 * others}, {"test.sum", 32 * others}};
  if (rank == 0) expected["test.broadcast"] = 8 * n * others;
  EXPECT_EQ(comm.bytes_sent(), size == 1 ? Bytes() : expected);
}

// What a group sends counts where it was split off, so that the whole rank can be asked in one place.
TEST_F(CommunicatorTest, CountsWhatGroupsSendToo) {
  Communicator group = comm.split("test.split", rank % 2);
  Communicator inner = group.split("test.split", 0);
  inner.all_gather("test.inner", rank);
  const int64_t sent = 8 * (group.size() - 1);
  EXPECT_EQ(comm.bytes_sent().contains("test.inner"), sent > 0);
  if (sent > 0) {
    EXPECT_EQ(comm.bytes_sent().at("test.inner"), sent);
  }
  EXPECT_EQ(group.bytes_sent(), comm.bytes_sent());
}

// 5 elements on 3 ranks: 2, 2 and 1 of them.
TEST(AllReduceBytes, ByHand) {
  EXPECT_EQ(all_reduce_bytes(5, 4, 0, 3), 4 * (3 + 2 * 2));
  EXPECT_EQ(all_reduce_bytes(5, 4, 2, 3), 4 * (4 + 1 * 2));
  EXPECT_EQ(all_reduce_bytes(1, 8, 1, 2), 8);
  EXPECT_EQ(all_reduce_bytes(5, 4, 0, 1), 0);
}

TEST_F(CommunicatorTest, SumsOfBf16AreRoundedOnce) {
  // Below 2⁻⁸ of 1: rounded after each addition they would be lost.
  std::vector<bf16> values = {bf16(rank == 0 ? 1.0f : 0x1p-9f), bf16(static_cast<float>(rank))};
  comm.all_reduce_sum("test.narrow", view(values));
  EXPECT_EQ(static_cast<float>(values[0]), static_cast<float>(bf16(1.0f + static_cast<float>(size - 1) * 0x1p-9f)));
  EXPECT_EQ(static_cast<float>(values[1]), static_cast<float>(size * (size - 1) / 2));
}

TEST_F(CommunicatorTest, SplitsIntoGroups) {
  Communicator group = comm.split("test.split", rank % 2);
  EXPECT_EQ(group.size(), (size + 1 - rank % 2) / 2);
  EXPECT_EQ(group.rank(), rank / 2);
  std::vector<int64_t> members;
  for (int r = rank % 2; r < size; r += 2) members.push_back(r);
  EXPECT_EQ(group.all_gather("test.members", rank), members);
  Communicator alone = comm.split("test.alone", rank);
  EXPECT_EQ(alone.size(), 1);
  EXPECT_EQ(alone.max("test.max", int64_t{rank}), rank);
  EXPECT_EQ(comm.max("test.all", int64_t{rank}), size - 1);
}

// Of any lengths, so that turns of both sets of slots end in different places, and with groups in turns.
TEST_F(CommunicatorTest, ManyInARowMixNothing) {
  Communicator pair = comm.split("test.pair", rank / 2);
  for (int64_t i = 0; i < 300; ++i) {
    const int64_t n = i * i * i % 100'003;
    check_all_reduce<float>(n);
    ASSERT_EQ(pair.all_gather("test.members", rank + i).back(), (pair.size() == 1 ? rank : rank | 1) + i);
  }
}

TEST_F(CommunicatorTest, RefusesWrongShapes) {
  float values[8] = {};
  std::vector<int64_t> rows_of(static_cast<size_t>(size), 1);
  const Tensor all = Tensor::of(values, {size, 2}), mine = Tensor::of(values, {1, 2});
  EXPECT_ERROR(internal, "where 1 rows are agreed",
               comm.all_gather_rows("test.x", Tensor::of(values, {2, 2}), rows_of, all));
  EXPECT_ERROR(internal, "f32 [1, 3] against",
               comm.all_gather_rows("test.x", Tensor::of(values, {1, 3}), rows_of, all));
  EXPECT_ERROR(internal, "i32 [1, 2] against",
               comm.reduce_scatter_rows("test.x", all, rows_of, Tensor(values, DType::i32, {1, 2})));
  rows_of.push_back(0);
  EXPECT_ERROR(internal, "rows of", comm.all_gather_rows("test.x", mine, rows_of, all));
  EXPECT_ERROR(internal, "root 9 of", comm.broadcast("test.x", mine, 9));
}

TEST_F(CommunicatorTest, RanksWhoseShapesDifferGetAnError) {
  if (size == 1) GTEST_SKIP() << "needs more than one rank";
  // Rank 0 expects 8 bytes of each, the others send 4.
  std::vector<int64_t> rows_of(static_cast<size_t>(size), rank == 0 ? 2 : 1);
  float mine[2] = {}, all[8] = {};
  const auto gather = [&] {
    const int64_t rows = rows_of[0];
    comm.all_gather_rows("test.differ", Tensor::of(mine, {rows}), rows_of, Tensor::of(all, {size * rows}));
  };
  EXPECT_ERROR(peer, "collective 'test.differ' of all ranks", gather());
}

TEST(CommunicatorSelf, IsTheIdentity) {
  Communicator self = Communicator::self();
  EXPECT_EQ(self.rank(), 0);
  EXPECT_EQ(self.size(), 1);
  EXPECT_EQ(self.local_rank(), 0);
  EXPECT_EQ(self.local_size(), 1);
  float values[4] = {1, 2, 3, 4}, out[4] = {};
  const std::vector<int64_t> rows_of = {2};
  self.all_reduce_sum("sum", Tensor::of(values, {4}));
  EXPECT_EQ(values[3], 4);
  self.all_gather_rows("gather", Tensor::of(values, {2, 2}), rows_of, Tensor::of(out, {2, 2}));
  EXPECT_EQ(out[3], 4);
  values[0] = 9;
  self.reduce_scatter_rows("scatter", Tensor::of(values, {2, 2}), rows_of, Tensor::of(out, {2, 2}));
  EXPECT_EQ(out[0], 9);
  EXPECT_EQ(self.max("max", 2.5), 2.5);
  EXPECT_EQ(self.all_gather("one", 5), std::vector<int64_t>{5});
  EXPECT_EQ(self.broadcast("text", "t", 0), "t");
  self.barrier("barrier");
  self.require_equal("equal", "what", "text");
  EXPECT_EQ(self.first_text("text", "t"), "t");
}

TEST(CommunicatorSelf, MovesKeepTheRank) {
  Communicator a = Communicator::world();
  const int rank = a.rank();
  Communicator b = std::move(a);
  EXPECT_EQ(b.rank(), rank);
  a = std::move(b);
  EXPECT_EQ(a.rank(), rank);
  a.barrier("test.moved");
}

TEST(WatchdogInTime, LetsCollectivesPass) {
  Communicator comm = Communicator::world();
  set_watchdog(30);
  set_watchdog_step(3);
  for (int i = 0; i < 100; ++i) comm.barrier("test.quick");
  set_watchdog(0);
}

}  // namespace
}  // namespace notellm

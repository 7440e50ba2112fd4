#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "data_pipeline/cooccurrence.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"
#include "tests/support/unpack.h"

namespace notellm {
namespace {

using test::TempDir;

constexpr int64_t plenty = 64 << 20;

NoteIndex numbered(int32_t count) {
  NoteIndex notes;
  for (int32_t row = 0; row < count; ++row) notes.add(std::to_string(row));
  return notes;
}

// The kept lists of a TSV log, with nothing stopped unless a test asks for it.
ClickLists lists_of(const std::string& text, int32_t notes, double heldout_share = 0) {
  const TempDir folder;
  write_file(folder / "clicks.tsv", text);
  ClicksConfig config;
  config.files = {(folder / "clicks.tsv").string()};
  config.heldout_share = heldout_share;
  config.stop_share = 1;
  config.max_user_notes = 1000;
  return read_clicks(config, numbered(notes), folder.path(), plenty);
}

// All ranks' pairs, one rank after the other, on every rank.
std::vector<Pair> gather(Communicator& ranks, std::vector<Pair> mine) {
  const std::vector<int64_t> counts = ranks.all_gather("counts", std::ssize(mine));
  int64_t total = 0;
  for (int64_t count : counts) total += count;
  std::vector<Pair> all(total);
  static_assert(sizeof(Pair) == 12);
  ranks.all_gather_rows("pairs", Tensor::of(reinterpret_cast<int32_t*>(mine.data()), {std::ssize(mine), 3}), counts,
                        Tensor::of(reinterpret_cast<int32_t*>(all.data()), {total, 3}));
  return all;
}

struct Result {
  std::vector<Pair> pairs;  // of all ranks
  CooccurrenceStats stats;  // of this rank
};

Result run(const ClickLists& lists, Split split, const CooccurrenceConfig& config = {}, int64_t memory = plenty,
           int threads = 1) {
  Communicator ranks = Communicator::world();
  Result result;
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  result.stats = cooccurrence(ranks, lists, split, config, memory, [&](std::span<const Pair> pairs) {
    result.pairs.insert(result.pairs.end(), pairs.begin(), pairs.end());
  });
  omp_set_num_threads(before);
  EXPECT_EQ(result.stats.pairs, std::ssize(result.pairs));
  result.pairs = gather(ranks, std::move(result.pairs));
  return result;
}

void expect_pairs(const std::vector<Pair>& found, const std::vector<Pair>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].query, expected[i].query) << "pair " << i;
    EXPECT_EQ(found[i].target, expected[i].target) << "pair " << i;
    EXPECT_EQ(found[i].score, expected[i].score) << "pair " << i;
  }
}

bool same_bytes(const std::vector<Pair>& x, const std::vector<Pair>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(Pair)) == 0;
}

TEST(Cooccurrence, ByHand) {
  // u: 0 1 2 (N 3), v: 1 0 (N 2), w: 0 1 0 (N 2; 1 follows 0 and 0 follows 1), x: 0 2 (N 2)
  const ClickLists lists = lists_of("u\t0 1 2\nv\t1 0\nw\t0 1 0\nx\t0 2\n", 3);
  const float third = 1.0 / 3, half_and_third = 0.5 + 1.0 / 3;
  const std::vector<Pair> expected = {{0, 1, half_and_third}, {0, 2, half_and_third}, {1, 0, 1}, {1, 2, third}};
  expect_pairs(run(lists, Split::train).pairs, expected);
  expect_pairs(run(lists, Split::heldout).pairs, {});

  // The bounds themselves are kept.
  CooccurrenceConfig config;
  config.lower = half_and_third;
  expect_pairs(run(lists, Split::train, config).pairs, {expected[0], expected[1], expected[2]});
  config.upper = half_and_third;
  expect_pairs(run(lists, Split::train, config).pairs, {expected[0], expected[1]});
  config.lower = 0;
  config.top = 1;
  expect_pairs(run(lists, Split::train, config).pairs, {expected[0], expected[3]});
}

TEST(Cooccurrence, EqualFractionsAreATie) {
  // 0→2 is 1/3 + 1/3 + 1/3, in f64 not the 1/2 + 1/2 of 0→3: the tie goes to the smaller row all the same.
  const ClickLists lists =
      lists_of("a\t0 2 4\nb\t0 2 5\nc\t0 2 6\nd\t0 1\ne\t0 1\nf\t0 1 7 8 9 10\ng\t0 3\nh\t0 3\n", 11);
  CooccurrenceConfig config;
  config.top = 3;
  const float one_and_sixth = 1 + 1.0 / 6;
  expect_pairs(run(lists, Split::train, config).pairs, [&] {
    std::vector<Pair> pairs = {{0, 1, one_and_sixth}, {0, 2, 1}, {0, 3, 1}};
    for (int32_t b : {4, 5, 6}) pairs.push_back({2, b, 1.0f / 3});
    for (int32_t a = 7; a < 10; ++a)
      for (int32_t b = a + 1; b <= 10; ++b) pairs.push_back({a, b, 1.0f / 6});
    // 1 is followed by 7, 8, 9, 10, of which three are kept.
    pairs.insert(pairs.begin() + 3, {{1, 7, 1.0f / 6}, {1, 8, 1.0f / 6}, {1, 9, 1.0f / 6}});
    return pairs;
  }());
}

// A log whose popular notes have hundreds of followers and whose rare ones none, with repeats.
std::string random_log(int32_t notes, int users) {
  std::mt19937 random(11);
  std::string text;
  for (int user = 0; user < users; ++user) {
    text += fmt::format("{}\t", user);
    const int length = 1 + static_cast<int>(random() % (user % 50 == 0 ? 60 : 9));
    for (int i = 0; i < length; ++i) {
      const double u = static_cast<double>(random() % 100'000) / 100'000;
      text += fmt::format("{}{}", i ? " " : "", static_cast<int32_t>(notes * u * u * u));
    }
    text += "\n";
  }
  return text;
}

// The definition as a plain double loop over the log's text.
std::vector<Pair> plain_pairs(const std::string& text, Split split, double heldout_share,
                              const CooccurrenceConfig& config) {
  std::map<int32_t, std::map<int32_t, double>> sums;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    const bool heldout = static_cast<double>(hash64(line.substr(0, tab), 1)) < heldout_share * 0x1p64;
    std::istringstream ids(line.substr(tab));
    std::vector<int32_t> clicks;
    for (int32_t id; ids >> id;) clicks.push_back(id);
    const std::set<int32_t> distinct(clicks.begin(), clicks.end());
    if (heldout != (split == Split::heldout) || distinct.size() < 2) continue;
    std::set<std::pair<int32_t, int32_t>> pairs;
    for (size_t i = 0; i < clicks.size(); ++i)
      for (size_t j = i + 1; j < clicks.size(); ++j)
        if (clicks[i] != clicks[j]) pairs.emplace(clicks[i], clicks[j]);
    for (const auto& [a, b] : pairs) sums[a][b] += 1.0 / static_cast<double>(distinct.size());
  }
  std::vector<Pair> all;
  for (const auto& [a, row] : sums) {
    std::vector<Pair> of_a;
    for (const auto& [b, sum] : row) {
      const auto score = static_cast<float>(sum);
      if (score >= static_cast<float>(config.lower) && score <= static_cast<float>(config.upper))
        of_a.push_back({a, b, score});
    }
    std::stable_sort(of_a.begin(), of_a.end(), [](const Pair& x, const Pair& y) { return x.score > y.score; });
    of_a.resize(std::min<size_t>(of_a.size(), config.top));
    all.insert(all.end(), of_a.begin(), of_a.end());
  }
  return all;
}

TEST(Cooccurrence, SameAsPlain) {
  constexpr int32_t notes = 700;
  const std::string text = random_log(notes, 3000);
  const ClickLists lists = lists_of(text, notes, 0.3);
  for (Split split : {Split::train, Split::heldout}) {
    for (const CooccurrenceConfig& config :
         {CooccurrenceConfig{}, CooccurrenceConfig{0.3, 2, 3}, CooccurrenceConfig{0, 1e9, 100'000}}) {
      // Both sum in f64 in the order of users, so that not even the rounding differs.
      const std::vector<Pair> expected = plain_pairs(text, split, 0.3, config);
      ASSERT_GT(expected.size(), 500u);
      expect_pairs(run(lists, split, config).pairs, expected);
    }
  }
}

TEST(Cooccurrence, SameBytesForAnyThreadsAndMemory) {
  constexpr int32_t notes = 700;
  const ClickLists lists = lists_of(random_log(notes, 3000), notes);
  const Result expected = run(lists, Split::train);
  for (int threads : {1, 2, 3}) {
    // What all must have, and for each thread a little, in which the most popular notes do not fit.
    const int64_t fixed = (notes + 1) * (8 + 12 * threads) + threads * (1 << 18);
    for (int64_t memory : {fixed + threads * 5000, fixed + threads * 50'000, plenty}) {
      const Result result = run(lists, Split::train, {}, memory, threads);
      EXPECT_TRUE(same_bytes(result.pairs, expected.pairs)) << threads << " threads, " << memory << " bytes";
      EXPECT_EQ(result.stats.triples, expected.stats.triples);
      EXPECT_EQ(result.stats.scored, expected.stats.scored);
      EXPECT_EQ(result.stats.beyond, expected.stats.beyond);
      if (memory < fixed + threads * 10'000) {
        EXPECT_GT(result.stats.ranges, 10);
      }
    }
  }
}

TEST(Cooccurrence, RanksShareTheWork) {
  constexpr int32_t notes = 700;
  const ClickLists lists = lists_of(random_log(notes, 3000), notes);
  Communicator ranks = Communicator::world();
  Communicator self = Communicator::self();
  std::vector<Pair> alone;
  const CooccurrenceStats whole = cooccurrence(self, lists, Split::train, {}, plenty, [&](std::span<const Pair> pairs) {
    alone.insert(alone.end(), pairs.begin(), pairs.end());
  });
  const Result result = run(lists, Split::train);
  EXPECT_TRUE(same_bytes(result.pairs, alone));
  int64_t triples = 0, most = 0;
  for (int64_t of_rank : ranks.all_gather("triples", result.stats.triples)) {
    triples += of_rank;
    most = std::max(most, of_rank);
  }
  EXPECT_EQ(triples, whole.triples);
  EXPECT_LT(most, 1.3 * static_cast<double>(triples) / ranks.size());
}

TEST(Cooccurrence, MoreRanksThanNotes) {
  const ClickLists lists = lists_of("u\t0 1\n", 2);
  expect_pairs(run(lists, Split::train).pairs, {{0, 1, 0.5f}});
}

TEST(Cooccurrence, Errors) {
  const ClickLists lists = lists_of("u\t0 1\nv\t1 0\n", 2);
  Communicator self = Communicator::self();
  EXPECT_ERROR(usage, "raise data.memory_mb", cooccurrence(self, lists, Split::train, {}, 1000, [](auto) {}));
  EXPECT_ERROR(io, "disk full",
               cooccurrence(self, lists, Split::train, {}, plenty, [](auto) { fail(ErrorKind::io, "disk full"); }));
}

int64_t sum_of_products(const std::vector<Pair>& pairs) {
  int64_t sum = 0;
  for (const Pair& pair : pairs) sum += int64_t{pair.query} * pair.target;
  return sum;
}

TEST(Cooccurrence, FrozenData) {
  NOTELLM_NEEDS_SHARED("data/debian-bookworm/clicks_bd.tsv.xz");
  const TempDir folder;
  ClicksConfig config;
  config.files = {test::unpack(test::shared_path("data/debian-bookworm/clicks_bd.tsv.xz"), folder).string()};
  const ClickLists lists = read_clicks(config, numbered(63'436), folder.path(), plenty);
  const std::vector<Pair> train = run(lists, Split::train).pairs, test = run(lists, Split::heldout).pairs;
  // By an independent computation in exact fractions.
  EXPECT_EQ(train.size(), 135'905u);
  EXPECT_EQ(test.size(), 37'695u);
  EXPECT_EQ(sum_of_products(train), 161'537'225'349'855);
  EXPECT_EQ(sum_of_products(test), 43'100'873'718'339);
  int64_t cold = 0;
  for (const Pair& pair : test)
    cold += lists.training_users()[pair.query] == 0 || lists.training_users()[pair.target] == 0;
  EXPECT_EQ(cold, 7'795);
}

}  // namespace
}  // namespace notellm

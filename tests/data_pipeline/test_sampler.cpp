#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "data_pipeline/sampler.h"
#include "runtime/error.h"

namespace notellm {
namespace {

// Notes 0..5: both a category and 3 hashtags; 6: hashtags only; 7: category only; 8: neither; 9: in no pair.
struct Fixture {
  NoteTable notes;
  PairTable pairs;

  Fixture() {
    const std::vector<int32_t> word = {7}, none;
    for (int j = 0; j < 3; ++j) {
      notes.prompt.hashtag_instruction.push_back(word);
      notes.prompt.hashtag_guidance.push_back(word);
    }
    for (int note = 0; note < 10; ++note) {
      notes.ids.push_back(std::to_string(note));
      notes.category_input.push_back(word);
      notes.hashtag_input.push_back(word);
      notes.category.push_back(note <= 5 || note == 7 ? word : none);
      const int hashtags = note <= 6 ? 3 : 0;
      for (int i = 0; i < hashtags; ++i) {
        notes.hashtag_inner.push_back(word);
        notes.hashtag_last.push_back(word);
      }
      notes.hashtag_begin.push_back(notes.hashtag_begin.back() + hashtags);
    }
    for (int32_t q = 0; q < 9; ++q)
      for (int32_t t = 0; t < 9; ++t)
        if (q != t && (q + t) % 4 != 3) pairs.train.push_back({q, t, 1.0f});
  }
};

bool same(const NoteExample& a, const NoteExample& b) {
  return a.note == b.note && a.task == b.task && a.topics == b.topics && a.until == b.until;
}

TEST(Sampler, EveryEpochHasEveryPairOnceInItsOwnOrder) {
  const Fixture f;
  const int64_t n = static_cast<int64_t>(f.pairs.train.size());
  const Sampler sampler(f.notes, f.pairs, 7, {});  // 7 does not divide n: steps straddle epochs
  EXPECT_NE(n % 7, 0);
  EXPECT_EQ(sampler.pairs_per_epoch(), n);
  std::set<std::vector<std::pair<int, int>>> orders;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    std::vector<std::pair<int, int>> order;
    for (int64_t place = epoch * n; place < (epoch + 1) * n; ++place) {
      const Sampler::Slot slot = sampler.slot(place / 7, place % 7);
      order.emplace_back(slot.query.note, slot.target.note);
    }
    orders.insert(order);
    std::sort(order.begin(), order.end());
    std::vector<std::pair<int, int>> expected;
    for (const Pair& pair : f.pairs.train) expected.emplace_back(pair.query, pair.target);
    EXPECT_EQ(order, expected) << "epoch " << epoch;
  }
  EXPECT_EQ(orders.size(), 5u);
}

TEST(Sampler, DependsOnNothingButSeedStepAndSlot) {
  const Fixture f;
  const Sampler sampler(f.notes, f.pairs, 8, {.seed = 4});
  std::vector<Sampler::Slot> forward;
  for (int64_t step = 0; step < 50; ++step)
    for (int64_t slot = 0; slot < 8; ++slot) forward.push_back(sampler.slot(step, slot));

  const Sampler resumed(f.notes, f.pairs, 8, {.seed = 4}), other(f.notes, f.pairs, 8, {.seed = 5});
  int differ = 0;
  for (int64_t i = 399; i >= 0; --i) {
    const Sampler::Slot again = resumed.slot(i / 8, i % 8), foreign = other.slot(i / 8, i % 8);
    ASSERT_TRUE(same(again.query, forward[i].query) && same(again.target, forward[i].target)) << i;
    differ += !same(foreign.query, forward[i].query);
  }
  EXPECT_GT(differ, 200);
}

TEST(Sampler, SequencesEndWhereItIsTold) {
  const Fixture f;
  const Sampler whole(f.notes, f.pairs, 8, {}), ended(f.notes, f.pairs, 8, {.until = Until::note});
  for (int64_t i = 0; i < 400; ++i) {
    Sampler::Slot expected = whole.slot(i / 8, i % 8);
    expected.query.until = expected.target.until = Until::note;
    const Sampler::Slot slot = ended.slot(i / 8, i % 8);
    ASSERT_TRUE(same(slot.query, expected.query) && same(slot.target, expected.target)) << i;
  }
}

TEST(Sampler, TasksFollowWhatTheNoteHas) {
  const Fixture f;
  const Sampler sampler(f.notes, f.pairs, 10, {.hashtag_share = 0.4});
  int64_t with_both = 0, hashtag_task = 0, free_pairs = 0, both_hashtags = 0;
  std::map<size_t, int64_t> j_counts;
  std::map<std::vector<int32_t>, int64_t> singles;
  for (int64_t i = 0; i < 40000; ++i) {
    const Sampler::Slot slot = sampler.slot(i / 10, i % 10);
    if (slot.query.note <= 5 && slot.target.note <= 5) {
      ++free_pairs;
      both_hashtags += slot.query.task == Task::hashtags && slot.target.task == Task::hashtags;
    }
    for (const NoteExample& example : {slot.query, slot.target}) {
      if (example.note == 6) {
        EXPECT_EQ(example.task, Task::hashtags);
      }
      if (example.note == 7) {
        EXPECT_EQ(example.task, Task::category);
      }
      if (example.note == 8) {
        EXPECT_EQ(example.task, Task::category);
      }
      ASSERT_EQ(example.topics.empty(), example.task != Task::hashtags);
      ASSERT_EQ(example.until, example.note == 8 ? Until::note : Until::output);
      if (example.note > 5) continue;
      ++with_both;
      if (example.task != Task::hashtags) continue;
      ++hashtag_task;
      ++j_counts[example.topics.size()];
      EXPECT_TRUE(std::is_sorted(example.topics.begin(), example.topics.end(), std::less_equal<>()));
      EXPECT_TRUE(example.topics.front() >= 0 && example.topics.back() <= 2);
      if (example.topics.size() == 1) ++singles[example.topics];
    }
  }
  // Binomial counts within five standard deviations of their mean.
  const auto expect_share = [](int64_t count, int64_t of, double share) {
    EXPECT_NEAR(count, of * share, 5 * std::sqrt(of * share * (1 - share)));
  };
  expect_share(hashtag_task, with_both, 0.4);
  expect_share(both_hashtags, free_pairs, 0.4 * 0.4);  // the two notes of a pair choose independently
  ASSERT_EQ(j_counts.size(), 3u);
  for (const auto& [j, count] : j_counts) expect_share(count, hashtag_task, 1.0 / 3);
  ASSERT_EQ(singles.size(), 3u);
  for (const auto& [topics, count] : singles) expect_share(count, j_counts[1], 1.0 / 3);
}

TEST(Sampler, FixedTopicCountIsOneAndPromptsBoundIt) {
  Fixture f;
  const Sampler single(f.notes, f.pairs, 10, {.hashtag_share = 1.0, .random_topics = false});
  f.notes.prompt.hashtag_instruction = {};
  for (int j = 0; j < 2; ++j) f.notes.prompt.hashtag_instruction.push_back(std::vector<int32_t>{7});
  const Sampler bounded(f.notes, f.pairs, 10, {.hashtag_share = 1.0});
  size_t most = 0;
  for (int64_t i = 0; i < 2000; ++i) {
    const NoteExample one = single.slot(i / 10, i % 10).query, two = bounded.slot(i / 10, i % 10).query;
    if (one.note <= 6) {
      EXPECT_EQ(one.topics.size(), 1u);
    }
    most = std::max(most, two.topics.size());
  }
  EXPECT_EQ(most, 2u);
}

TEST(Sampler, SamplingProbabilityCountsPlaces) {
  NoteTable notes;
  notes.ids = {"a", "b", "c"};
  PairTable pairs;
  pairs.train = {{0, 1, 1}, {1, 0, 1}, {0, 2, 1}, {0, 1, 1}};
  notes.ids.push_back("in no pair");
  const Sampler sampler(notes, pairs, 1, {});
  EXPECT_FLOAT_EQ(sampler.log_sampling_probability(0), std::log(4.0f / 8));
  EXPECT_FLOAT_EQ(sampler.log_sampling_probability(1), std::log(3.0f / 8));
  EXPECT_FLOAT_EQ(sampler.log_sampling_probability(2), std::log(1.0f / 8));
  EXPECT_EQ(sampler.log_sampling_probability(3), -std::numeric_limits<float>::infinity());
}

TEST(Sampler, RefusesFewerPairsThanAStep) {
  const Fixture f;
  const int64_t n = static_cast<int64_t>(f.pairs.train.size());
  EXPECT_NO_THROW(Sampler(f.notes, f.pairs, n, {}));
  try {
    Sampler(f.notes, f.pairs, n + 1, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::data);
    EXPECT_NE(std::string(error.what()).find(std::to_string(n + 1)), std::string::npos);
  }
  EXPECT_THROW(Sampler(f.notes, f.pairs, 4, {}).slot(0, 4), Error);
}

TEST(Balance, HandCase) {
  // 9 → list 0 (rank 0), 7 → list 1 (rank 1), 5 → list 1 has 7 < 9: full with 2 slots; then 4 → list 0.
  const auto lists = balance({5, 9, 4, 7}, 2, 1);
  EXPECT_EQ(lists, (std::vector<std::vector<std::vector<int32_t>>>{{{1, 2}}, {{0, 3}}}));
}

TEST(Balance, FewerSlotsThanListsGoToAllRanks) {
  const auto lists = balance({10, 20}, 2, 3);
  EXPECT_EQ(lists, (std::vector<std::vector<std::vector<int32_t>>>{{{1}, {}, {}}, {{0}, {}, {}}}));
  for (const auto& of_rank : balance({}, 2, 2))
    for (const auto& list : of_rank) EXPECT_TRUE(list.empty());
}

TEST(Balance, PropertiesOnRandomRaggedSlots) {
  for (uint64_t trial = 0; trial < 300; ++trial) {
    const int slots = static_cast<int>(random_bits(1, trial, 0) % 200), ranks = 1 + random_bits(1, trial, 1) % 5,
              micro_batches = 1 + random_bits(1, trial, 2) % 5, lists = ranks * micro_batches;
    std::vector<int64_t> tokens(slots);
    for (int i = 0; i < slots; ++i) tokens[i] = static_cast<int64_t>(random_bits(2, trial, i) % 300);
    const auto result = balance(tokens, ranks, micro_batches);
    ASSERT_EQ(result.size(), static_cast<size_t>(ranks));
    std::vector<int> seen(slots, 0);
    std::vector<int64_t> loads;
    for (const auto& of_rank : result) {
      ASSERT_EQ(of_rank.size(), static_cast<size_t>(micro_batches));
      for (const auto& list : of_rank) {
        EXPECT_LE(static_cast<int>(list.size()), (slots + lists - 1) / lists);
        EXPECT_TRUE(slots < lists || !list.empty());
        EXPECT_TRUE(std::is_sorted(list.begin(), list.end()));
        int64_t load = 0;
        for (int32_t slot : list) load += tokens[slot], ++seen[slot];
        loads.push_back(load);
      }
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), slots);
    EXPECT_EQ(balance(tokens, ranks, micro_batches), result);
  }
}

// Slots of 1 … 32 tokens on 16 lists: the 16 longest one each, then 16 joins 17, 15 joins 18, …: 33 everywhere.
TEST(Balance, EvensOutTheLoad) {
  std::vector<int64_t> tokens(32);
  for (int i = 0; i < 32; ++i) tokens[i] = 1 + (i * 7) % 32;
  for (const auto& of_rank : balance(tokens, 4, 4))
    for (const auto& list : of_rank) {
      ASSERT_EQ(list.size(), 2u);
      EXPECT_EQ(tokens[list[0]] + tokens[list[1]], 33);
    }
}

}  // namespace
}  // namespace notellm

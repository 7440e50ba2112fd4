#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "data_pipeline/batch.h"
#include "data_pipeline/sampler.h"
#include "runtime/error.h"

namespace notellm {
namespace {

using Ints = std::vector<int32_t>;

using Triples = std::vector<std::array<int32_t, 3>>;

Triples segments(const PackedBatch& batch) {
  Triples result;
  for (const Segment& segment : batch.segments) result.push_back({segment.begin, segment.end, segment.prefix});
  return result;
}

// [EMB] 99, EOS 2, BOS 1. Notes 0, 1, 2 begin alike for two tokens (30 31); note 3 equals note 0.
NoteTable tiny_table() {
  NoteTable notes;
  notes.ids = {"a", "b", "c", "d"};
  PromptTokens& prompt = notes.prompt;
  prompt.emb = 99;
  prompt.eos = 2;
  prompt.vocabulary = 100;
  prompt.category_instruction = {1, 10, 11};
  prompt.category_guidance = {12, 13};
  prompt.hashtag_instruction.push_back(Ints{1, 20, 21});
  prompt.hashtag_instruction.push_back(Ints{1, 20, 22});
  prompt.hashtag_guidance.push_back(Ints{23});
  prompt.hashtag_guidance.push_back(Ints{24, 25});
  for (const Ints& input : {Ints{30, 31, 32}, Ints{30, 31}, Ints{30, 31, 33, 34}, Ints{30, 31, 32}}) {
    notes.category_input.push_back(input);
    notes.hashtag_input.push_back(Ints(input.begin() + 1, input.end()));
  }
  notes.category.push_back(Ints{40, 41});
  notes.category.push_back(Ints{42});
  notes.category.push_back(Ints{});
  notes.category.push_back(Ints{40, 41});
  for (int32_t tag = 50; tag < 53; ++tag) {  // note 0 has three hashtags, the others none
    notes.hashtag_inner.push_back(Ints{tag, 60});
    notes.hashtag_last.push_back(Ints{tag});
  }
  notes.hashtag_begin = {0, 3, 3, 3, 3};
  return notes;
}

TEST(Compose, CategoryHashtagsAndEmbed) {
  const NoteTable notes = tiny_table();
  Ints out = {7, 7, 7};
  int32_t first_label = -1;
  EXPECT_EQ(compose(notes, {0, Task::category, {}}, out, &first_label), 5);
  EXPECT_EQ(out, (Ints{1, 10, 11, 30, 31, 32, 99, 12, 13, 40, 41}));
  EXPECT_EQ(first_label, 8);

  EXPECT_EQ(compose(notes, {0, Task::hashtags, {2, 0}}, out, &first_label), 4);
  EXPECT_EQ(out, (Ints{1, 20, 22, 31, 32, 99, 24, 25, 52, 60, 50}));
  EXPECT_EQ(first_label, 7);

  EXPECT_EQ(compose(notes, {1, Task::category, {}, Until::note}, out, &first_label), 4);
  EXPECT_EQ(out, (Ints{1, 10, 11, 30, 31}));
  EXPECT_EQ(first_label, 5);
}

TEST(Pack, TwoNotesShareTheirBeginning) {
  const NoteTable notes = tiny_table();
  const std::vector<NoteExample> examples = {{0, Task::category, {}}, {2, Task::category, {}, Until::note}};
  PackedBatch batch;
  pack(notes, examples, true, batch);
  EXPECT_EQ(batch.tokens, (Ints{1, 10, 11, 30, 31, /**/ 32, 99, 12, 13, 40, 41, /**/ 33, 34}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 4, /**/ 5, 6, 7, 8, 9, 10, /**/ 5, 6}));
  EXPECT_EQ(segments(batch), (Triples{{0, 5, -1}, {5, 11, 0}, {11, 13, 0}}));
  EXPECT_EQ(batch.note_rows, (Ints{5, 12}));
  EXPECT_EQ(batch.note_ids, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(batch.label_rows, (Ints{8, 9, 10}));
  EXPECT_EQ(batch.labels, (Ints{40, 41, 2}));
  EXPECT_EQ(batch.unshared_tokens, 11 + 7);
}

TEST(Pack, TheNoteRowStaysInItsOwnSegment) {
  const NoteTable notes = tiny_table();
  // Note 1 is the beginning of note 0, and note 3 equals note 0: at most up to note 1's note row (30 | 31).
  const std::vector<NoteExample> examples = {
      {0, Task::category, {}}, {1, Task::category, {}}, {3, Task::category, {}, Until::note}};
  PackedBatch batch;
  pack(notes, examples, true, batch);
  EXPECT_EQ(segments(batch), (Triples{{0, 4, -1}, {4, 11, 0}, {11, 16, 0}, {16, 18, 0}}));
  EXPECT_EQ(batch.tokens, (Ints{1, 10, 11, 30, /**/ 31, 32, 99, 12, 13, 40, 41, /**/ 31, 99, 12, 13, 42, /**/ 31, 32}));
  EXPECT_EQ(batch.note_rows, (Ints{5, 11, 17}));
  EXPECT_EQ(batch.label_rows, (Ints{8, 9, 10, 14, 15}));
  EXPECT_EQ(batch.labels, (Ints{40, 41, 2, 42, 2}));

  pack(notes, std::vector<NoteExample>{{0, Task::category, {}, Until::note}, {3, Task::category, {}, Until::note}},
       true, batch);  // identical notes
  EXPECT_EQ(segments(batch), (Triples{{0, 5, -1}, {5, 6, 0}, {6, 7, 0}}));
  EXPECT_EQ(batch.note_rows, (Ints{5, 6}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 4, 5, 5}));
  EXPECT_TRUE(batch.labels.empty());
}

TEST(Pack, AnEmptyNotePartLeavesTheLastInstructionTokenToTheNote) {
  NoteTable notes = tiny_table();
  notes.category_input = {};
  notes.category_input.push_back(Ints{});
  notes.category_input.push_back(Ints{30});
  PackedBatch batch;
  pack(notes, std::vector<NoteExample>{{1, Task::category, {}, Until::note}, {0, Task::category, {}, Until::note}},
       true, batch);
  EXPECT_EQ(batch.tokens, (Ints{1, 10, /**/ 11, 30, /**/ 11}));
  EXPECT_EQ(batch.note_rows, (Ints{3, 4}));
}

TEST(Pack, AGroupOfOneHasNoPrefixAndGroupsAreByInstruction) {
  const NoteTable notes = tiny_table();
  const std::vector<NoteExample> examples = {
      {0, Task::hashtags, {1}}, {1, Task::category, {}}, {0, Task::hashtags, {0, 1}}, {0, Task::hashtags, {2}}};
  PackedBatch batch;
  pack(notes, examples, true, batch);
  // Only j = 1 has two notes; they are the same note, so all before the note row (32) is shared.
  EXPECT_EQ(segments(batch), (Triples{{0, 4, -1}, {4, 8, 0}, {8, 17, -1}, {17, 28, -1}, {28, 32, 0}}));
  EXPECT_EQ(Ints(batch.tokens.begin(), batch.tokens.begin() + 8), (Ints{1, 20, 21, 31, /**/ 32, 99, 23, 51}));
  EXPECT_EQ(batch.note_rows, (Ints{4, 12, 21, 28}));
  EXPECT_EQ(batch.labels, (Ints{51, 2, 42, 2, 50, 60, 51, 2, 52, 2}));
  EXPECT_EQ(batch.unshared_tokens, 32 + 4);

  pack(notes, {}, true, batch);
  EXPECT_TRUE(batch.tokens.empty() && batch.segments.empty() && batch.note_rows.empty() && batch.note_ids.empty() &&
              batch.positions.empty() && batch.labels.empty() && batch.label_rows.empty());
  EXPECT_EQ(batch.unshared_tokens, 0);
}

TEST(Pack, RefusesWhatTheTableDoesNotHave) {
  const NoteTable notes = tiny_table();
  PackedBatch batch;
  const auto pack_one = [&](NoteExample example) { pack(notes, std::vector<NoteExample>{example}, true, batch); };
  EXPECT_THROW(pack_one({4, Task::category, {}, Until::note}), Error);
  EXPECT_THROW(pack_one({-1, Task::category, {}, Until::note}), Error);
  EXPECT_THROW(pack_one({0, Task::hashtags, {}}), Error);
  EXPECT_THROW(pack_one({0, Task::hashtags, {0, 1, 2}}), Error);  // prompts go to j = 2
  EXPECT_THROW(pack_one({0, Task::hashtags, {3}}), Error);
  EXPECT_THROW(pack_one({1, Task::hashtags, {0}}), Error);
}

// A random table whose notes often begin alike: few different tokens.
NoteTable random_table(uint64_t seed, int notes_count) {
  uint64_t counter = 0;
  const auto below = [&](uint64_t n) { return static_cast<int32_t>(random_bits(seed, counter++, 0) % n); };
  const auto list = [&](int low, int high, int tokens) {
    Ints result(low + below(high - low + 1));
    for (int32_t& token : result) token = 3 + below(tokens);
    return result;
  };
  NoteTable notes;
  notes.prompt.emb = 1000;
  notes.prompt.eos = 1001;
  notes.prompt.category_instruction = list(1, 6, 50);
  notes.prompt.category_guidance = list(0, 3, 50);
  for (int j = 0; j < 3; ++j) {
    notes.prompt.hashtag_instruction.push_back(list(1, 6, 50));
    notes.prompt.hashtag_guidance.push_back(list(0, 3, 50));
  }
  for (int i = 0; i < notes_count; ++i) {
    notes.ids.push_back(std::to_string(i));
    notes.category_input.push_back(list(0, 9, 2));
    notes.hashtag_input.push_back(list(0, 9, 2));
    notes.category.push_back(list(1, 3, 50));
    const int hashtags = 1 + below(3);
    for (int h = 0; h < hashtags; ++h) {
      notes.hashtag_inner.push_back(list(2, 3, 50));
      notes.hashtag_last.push_back(list(1, 2, 50));
    }
    notes.hashtag_begin.push_back(notes.hashtag_begin.back() + hashtags);
  }
  return notes;
}

std::vector<NoteExample> random_examples(const NoteTable& notes, uint64_t seed, int count) {
  std::vector<NoteExample> examples;
  for (int i = 0; i < count; ++i) {
    NoteExample example{};
    example.note = static_cast<int32_t>(random_bits(seed, i, 1) % notes.size());
    example.task = static_cast<Task>(random_bits(seed, i, 2) % 2);
    example.until = static_cast<Until>(random_bits(seed, i, 4) % 3);
    const int64_t j = 1 + random_bits(seed, i, 3) % notes.hashtags(example.note);
    for (int32_t topic = 0; example.task == Task::hashtags && topic < j; ++topic) example.topics.push_back(topic);
    examples.push_back(example);
  }
  return examples;
}

// Takes the batch apart by its segments alone and compares every note with its composed sequence.
void expect_unpacks(const NoteTable& notes, const std::vector<NoteExample>& examples, const PackedBatch& batch) {
  const size_t prefixes = batch.segments.size() - examples.size();
  Ints label_rows, labels;
  int32_t token = 0;
  int64_t unshared = 0;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const Segment& segment = batch.segments[s];
    EXPECT_EQ(segment.begin, token);
    EXPECT_LT(segment.begin, segment.end);
    token = segment.end;
    if (s < prefixes) {
      EXPECT_EQ(segment.prefix, -1);
      continue;
    }
    Ints sequence, positions;
    const auto take = [&](const Segment& part) {
      sequence.insert(sequence.end(), batch.tokens.begin() + part.begin, batch.tokens.begin() + part.end);
      positions.insert(positions.end(), batch.positions.begin() + part.begin, batch.positions.begin() + part.end);
    };
    if (segment.prefix >= 0) {
      ASSERT_LT(static_cast<size_t>(segment.prefix), prefixes);
      take(batch.segments[segment.prefix]);
    }
    const int32_t skipped = static_cast<int32_t>(sequence.size());
    take(segment);

    const size_t i = s - prefixes;
    Ints expected;
    int32_t first_label = 0;
    const int32_t note_row = compose(notes, examples[i], expected, &first_label);
    EXPECT_EQ(sequence, expected);
    for (size_t p = 0; p < positions.size(); ++p) EXPECT_EQ(positions[p], static_cast<int32_t>(p));
    EXPECT_GE(note_row, skipped);
    EXPECT_EQ(batch.note_rows[i], segment.begin + note_row - skipped);
    EXPECT_EQ(batch.note_ids[i], examples[i].note);
    expected.push_back(notes.prompt.eos);
    for (int32_t row = first_label; row + 1 < static_cast<int32_t>(expected.size()); ++row) {
      if (examples[i].until == Until::note) break;
      label_rows.push_back(segment.begin + row - skipped);
      labels.push_back(expected[row + 1]);
    }
    unshared += static_cast<int64_t>(sequence.size());
  }
  EXPECT_EQ(static_cast<size_t>(token), batch.tokens.size());
  EXPECT_EQ(batch.positions.size(), batch.tokens.size());
  EXPECT_EQ(batch.label_rows, label_rows);
  EXPECT_TRUE(std::is_sorted(label_rows.begin(), label_rows.end()));
  EXPECT_EQ(batch.labels, labels);
  EXPECT_EQ(batch.unshared_tokens, unshared);
}

// The prefix is the longest possible: of each pair of notes that use it, or of their note rows, something stops it.
void expect_longest_prefixes(const NoteTable& notes, const std::vector<NoteExample>& examples,
                             const PackedBatch& batch) {
  const size_t prefixes = batch.segments.size() - examples.size();
  for (size_t p = 0; p < prefixes; ++p) {
    const int32_t length = batch.segments[p].end - batch.segments[p].begin;
    int users = 0;
    bool stopped = false;
    int32_t next = -1;
    for (size_t i = 0; i < examples.size(); ++i) {
      if (batch.segments[prefixes + i].prefix != static_cast<int32_t>(p)) continue;
      Ints sequence;
      int32_t first_label = 0;
      const int32_t note_row = compose(notes, examples[i], sequence, &first_label);
      stopped |= note_row == length || (users > 0 && sequence[length] != next);
      next = sequence[length];
      ++users;
    }
    EXPECT_GE(users, 2);
    EXPECT_TRUE(stopped);
  }
}

TEST(Pack, UnpacksToTheComposedSequences) {
  PackedBatch shared, plain;  // reused: what a batch leaves behind must not reach the next
  size_t prefixes = 0;
  for (uint64_t trial = 0; trial < 200; ++trial) {
    const NoteTable notes = random_table(trial, 12);
    const std::vector<NoteExample> examples = random_examples(notes, trial, static_cast<int>(trial % 17));
    pack(notes, examples, true, shared);
    expect_unpacks(notes, examples, shared);
    expect_longest_prefixes(notes, examples, shared);
    pack(notes, examples, false, plain);
    expect_unpacks(notes, examples, plain);
    EXPECT_EQ(plain.segments.size(), examples.size());
    EXPECT_LE(shared.tokens.size(), plain.tokens.size());
    EXPECT_EQ(plain.unshared_tokens, static_cast<int64_t>(plain.tokens.size()));
    prefixes += shared.segments.size() - examples.size();
    if (HasFailure()) FAIL() << "trial " << trial;
  }
  EXPECT_GT(prefixes, 200u);
}

}  // namespace
}  // namespace notellm

#include <gtest/gtest.h>

#include <limits>

#include "data_pipeline/hdf5_file.h"
#include "data_pipeline/shards.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_notes.h"

namespace notellm {
namespace {

using test::TempDir;
using test::TinyData;

ShardSet set_of(const TinyData& data, int64_t notes_per_shard = 7, int64_t pairs_per_shard = 10) {
  ShardSet set;
  set.id = "set 1";
  set.tokenizer_digest = data.notes.tokenizer_digest;
  set.preset = "paper";
  set.config = "seed: 1\n";
  set.inputs = {{"notes.jsonl", "abc"}};
  set.prompt = data.notes.prompt;
  set.category_names = data.notes.category_names;
  set.notes = data.notes.size();
  set.train_pairs = std::ssize(data.pairs.train);
  set.test_pairs = std::ssize(data.pairs.test);
  set.notes_per_shard = notes_per_shard;
  set.pairs_per_shard = pairs_per_shard;
  return set;
}

// Notes [begin, end) as a table of their own.
NoteTable slice(const NoteTable& all, int64_t begin, int64_t end) {
  NoteTable part;
  for (int64_t i = begin; i < end; ++i) {
    part.ids.push_back(all.ids[i]);
    part.titles.push_back(all.titles[i]);
    part.category_input.push_back(all.category_input[i]);
    part.hashtag_input.push_back(all.hashtag_input[i]);
    part.category.push_back(all.category[i]);
    part.category_id.push_back(all.category_id[i]);
    for (uint64_t h = all.hashtag_begin[i]; h < all.hashtag_begin[i + 1]; ++h) {
      part.hashtag_inner.push_back(all.hashtag_inner[h]);
      part.hashtag_last.push_back(all.hashtag_last[h]);
    }
    part.hashtag_begin.push_back(part.hashtag_inner.size());
    part.clicks.push_back(all.clicks[i]);
    part.in_pool.push_back(all.in_pool[i]);
  }
  return part;
}

template <class T>
std::span<const T> piece(const std::vector<T>& all, int64_t shard, int64_t size) {
  const int64_t n = std::ssize(all), begin = std::min(n, shard * size);
  return std::span(all).subspan(begin, std::min(size, n - begin));
}

void write_all(const std::filesystem::path& folder, const ShardSet& set, const TinyData& data) {
  for (int64_t shard = 0; shard < set.note_shards(); ++shard)
    write_notes_shard(
        folder, set, shard,
        slice(data.notes, shard * set.notes_per_shard, std::min(data.notes.size(), (shard + 1) * set.notes_per_shard)));
  for (int64_t shard = 0; shard < set.pair_shards(); ++shard)
    write_pairs_shard(folder, set, shard, piece(data.pairs.train, shard, set.pairs_per_shard),
                      piece(data.pairs.test, shard, set.pairs_per_shard));
  finish_shards(folder, set);
}

void expect_equal(const Ragged& a, const Ragged& b) {
  EXPECT_EQ(a.offsets, b.offsets);
  EXPECT_EQ(a.values, b.values);
}

void expect_equal(const std::vector<Pair>& a, const std::vector<Pair>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].query, b[i].query);
    EXPECT_EQ(a[i].target, b[i].target);
    EXPECT_EQ(a[i].score, b[i].score);
  }
}

TinyData some_data() {
  TinyData data = test::tiny_data(20);
  data.notes.titles[3] = "";
  data.notes.titles[4] = "two\nlines \xe7\xac\x94";
  data.notes.in_pool[5] = 0;
  data.pairs.test = {{1, 2, 0.25f}, {2, 1, 30.f}, {0, 19, 0.01f}};
  return data;
}

TEST(Shards, RoundTrip) {
  const TinyData data = some_data();
  for (const auto& [notes_per_shard, pairs_per_shard] : {std::pair{7, 10}, {20, 1000}, {1, 1}}) {
    const TempDir folder;
    const ShardSet set = set_of(data, notes_per_shard, pairs_per_shard);
    write_all(folder.path(), set, data);
    const Shards read = read_shards(folder.path());
    EXPECT_EQ(read.notes.ids, data.notes.ids);
    EXPECT_EQ(read.notes.titles, data.notes.titles);
    expect_equal(read.notes.category_input, data.notes.category_input);
    expect_equal(read.notes.hashtag_input, data.notes.hashtag_input);
    expect_equal(read.notes.category, data.notes.category);
    EXPECT_EQ(read.notes.category_id, data.notes.category_id);
    EXPECT_EQ(read.notes.category_names, data.notes.category_names);
    EXPECT_EQ(read.notes.hashtag_begin, data.notes.hashtag_begin);
    expect_equal(read.notes.hashtag_inner, data.notes.hashtag_inner);
    expect_equal(read.notes.hashtag_last, data.notes.hashtag_last);
    EXPECT_EQ(read.notes.clicks, data.notes.clicks);
    EXPECT_EQ(read.notes.in_pool, data.notes.in_pool);
    EXPECT_EQ(read.notes.tokenizer_digest, data.notes.tokenizer_digest);
    EXPECT_EQ(read.notes.prompt.category_instruction, data.notes.prompt.category_instruction);
    EXPECT_EQ(read.notes.prompt.category_guidance, data.notes.prompt.category_guidance);
    expect_equal(read.notes.prompt.hashtag_instruction, data.notes.prompt.hashtag_instruction);
    expect_equal(read.notes.prompt.hashtag_guidance, data.notes.prompt.hashtag_guidance);
    EXPECT_EQ(read.notes.prompt.emb, 39);
    EXPECT_EQ(read.notes.prompt.eos, 2);
    EXPECT_EQ(read.notes.prompt.vocabulary, 40);
    expect_equal(read.pairs.train, data.pairs.train);
    expect_equal(read.pairs.test, data.pairs.test);
  }
}

TEST(Shards, FilesAndAttributesAreAsDocumented) {
  const TinyData data = some_data();
  const TempDir folder;
  write_all(folder.path(), set_of(data), data);
  const Hdf5File notes(folder / "notes-00002.h5");
  EXPECT_EQ(notes.text("format"), "notellm notes 1");
  EXPECT_EQ(notes.text("set"), "set 1");
  EXPECT_EQ(notes.text("tokenizer"), "tiny");
  EXPECT_EQ(notes.text("preset"), "paper");
  EXPECT_EQ(notes.text("notes"), "6");
  EXPECT_EQ(notes.text("first_row"), "14");
  EXPECT_EQ(notes.length("category_input/offsets"), 7);
  const Hdf5File pairs(folder / "pairs-00000.h5");
  EXPECT_EQ(pairs.text("train_pairs"), "10");
  EXPECT_EQ(pairs.text("test_pairs"), "3");
  EXPECT_EQ(pairs.read<float>("test/score"), (std::vector<float>{0.25f, 30.f, 0.01f}));
  const ShardSet set = read_shard_set(folder.path());
  EXPECT_EQ(set.inputs.at("notes.jsonl"), "abc");
  EXPECT_EQ(set.config, "seed: 1\n");
}

// More than an attribute of HDF5 can hold: the names of thousands of click logs.
TEST(Shards, AConfigurationOfAnyLength) {
  const TinyData data = some_data();
  const TempDir folder;
  ShardSet set = set_of(data);
  set.config = std::string(100'000, 'x');
  write_all(folder.path(), set, data);
  EXPECT_EQ(read_shard_set(folder.path()).config, set.config);
  EXPECT_EQ(read_shards(folder.path()).notes.ids, data.notes.ids);
}

TEST(Shards, AFolderWithoutShardsJsonIsNotComplete) {
  const TinyData data = some_data();
  const TempDir folder;
  write_all(folder.path(), set_of(data), data);
  std::filesystem::remove(folder / "shards.json");
  EXPECT_FALSE(has_shards(folder.path()));
  EXPECT_ERROR(io, "shards.json: no complete set of shards", read_shards(folder.path()));
}

TEST(Shards, DamagedShardsJson) {
  const TempDir folder;
  write_file(folder / "shards.json", "{\"format\": \"notellm shards 1\", \"set\": 5");
  EXPECT_ERROR(data, "shards.json: damaged", read_shards(folder.path()));
  write_file(folder / "shards.json", "{\"format\": \"notellm shards 1\"}");
  EXPECT_ERROR(data, "shards.json: damaged", read_shards(folder.path()));
  write_file(folder / "shards.json", "{\"format\": \"notellm shards 9\"}");
  EXPECT_ERROR(data, "format is not \"notellm shards 1\"", read_shards(folder.path()));
  write_file(folder / "shards.json", "[]");
  EXPECT_ERROR(data, "format is not", read_shards(folder.path()));
}

// Before memory of that size is asked for.
TEST(Shards, CountsAndTokensOfShardsJsonThatCannotBe) {
  const TinyData data = some_data();
  const TempDir folder;
  const ShardSet good = set_of(data);
  const auto expect_error = [&](const char* part, auto change) {
    ShardSet set = good;
    write_all(folder.path(), set, data);
    change(set);
    finish_shards(folder.path(), set);
    EXPECT_ERROR(data, part, read_shards(folder.path()));
  };
  for (const int64_t n : {int64_t{0}, int64_t{-1}, int64_t{1} << 31, std::numeric_limits<int64_t>::max()}) {
    expect_error("impossible counts", [n](ShardSet& set) { set.notes = n; });
    expect_error("impossible counts", [n](ShardSet& set) { set.notes_per_shard = n; });
  }
  expect_error("impossible counts", [](ShardSet& set) { set.train_pairs = -1; });
  expect_error("impossible counts", [](ShardSet& set) { set.pairs_per_shard = int64_t{1} << 62; });
  expect_error("\"clicks\" has 7 elements, not 2147483647",
               [](ShardSet& set) { set.notes = set.notes_per_shard = (int64_t{1} << 31) - 1; });
  expect_error("\"train/query\" has 10 elements, not 281474976710656",
               [](ShardSet& set) { set.train_pairs = set.pairs_per_shard = int64_t{1} << 48; });
  const char* unknown = "tokens that are not in the vocabulary";
  expect_error(unknown, [](ShardSet& set) { set.prompt.emb = 40; });
  expect_error(unknown, [](ShardSet& set) { set.prompt.eos = -1; });
  expect_error(unknown, [](ShardSet& set) { set.prompt.category_guidance.push_back(40); });
  expect_error(unknown, [](ShardSet& set) { set.prompt.hashtag_instruction.values[0] = 1 << 20; });
}

// A complete folder whose second notes shard is then replaced.
class DamagedShards : public testing::Test {
 protected:
  void SetUp() override { write_all(folder.path(), set, data); }
  void expect_error(const std::string& part) { EXPECT_ERROR(data, part, read_shards(folder.path())); }

  const TinyData data = some_data();
  const ShardSet set = set_of(data);
  NoteTable notes = slice(data.notes, 7, 14);
  const TempDir folder;
};

TEST_F(DamagedShards, MissingFile) {
  std::filesystem::remove(folder / "notes-00001.h5");
  EXPECT_ERROR(io, "notes-00001.h5: cannot be read: No such file", read_shards(folder.path()));
}

TEST_F(DamagedShards, TruncatedFile) {
  const std::string whole = read_file(folder / "pairs-00000.h5");
  write_file(folder / "pairs-00000.h5", whole.substr(0, whole.size() / 2));
  expect_error("pairs-00000.h5: damaged or cut short");
}

TEST_F(DamagedShards, ForeignFile) {
  Hdf5Writer writer;
  writer.write("x", std::vector<float>{1, 2});
  writer.save(folder / "notes-00001.h5");
  expect_error("notes-00001.h5: no attribute \"format\"");
}

TEST_F(DamagedShards, AFileOfTheOtherKind) {
  std::filesystem::copy_file(folder / "pairs-00000.h5", folder / "notes-00001.h5",
                             std::filesystem::copy_options::overwrite_existing);
  expect_error("notes-00001.h5: format is \"notellm pairs 1\", not \"notellm notes 1\"");
}

TEST_F(DamagedShards, MadeWithAnotherTokenizerPresetOrRun) {
  ShardSet other = set;
  other.tokenizer_digest = "another";
  write_notes_shard(folder.path(), other, 1, notes);
  expect_error(
      "notes-00001.h5: made with another tokenizer (\"another\" here, \"tiny\" in shards.json); run prepare again");
  other = set;
  other.preset = "released";
  write_notes_shard(folder.path(), other, 1, notes);
  expect_error("another prompt preset");
  other = set;
  other.id = "set 2";
  write_notes_shard(folder.path(), other, 1, notes);
  expect_error("made by another run of prepare");
}

TEST_F(DamagedShards, OffsetsThatDescendOrPointOutside) {
  notes.category_input.offsets[2] = notes.category_input.offsets[4];
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("notes-00001.h5: array \"category_input/offsets\" descends at element 3");
  notes = slice(data.notes, 7, 14);
  notes.hashtag_input.offsets.back() += 1;
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("array \"hashtag_input/offsets\" goes from 0 to");
  notes = slice(data.notes, 7, 14);
  notes.hashtag_begin.back() += 1;
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("array \"hashtag_begin\" goes from 0 to");
}

TEST_F(DamagedShards, ValuesOutOfRange) {
  notes.category.values[0] = 40;
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("array \"category/values\" holds 40 at element 0, outside 0 … 39");
  notes = slice(data.notes, 7, 14);
  notes.category_id[1] = 3;
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("array \"category_id\" holds 3 at element 1, outside -1 … 2");
  write_notes_shard(folder.path(), set, 1, slice(data.notes, 7, 14));
  const std::vector<Pair> pairs(10, {0, 20, 1.f});
  write_pairs_shard(folder.path(), set, 0, pairs, data.pairs.test);
  expect_error("pairs-00000.h5: array \"train/target\" holds 20 at element 0, outside 0 … 19");
}

TEST_F(DamagedShards, ArraysOfAnotherLength) {
  write_notes_shard(folder.path(), set, 1, slice(data.notes, 7, 13));
  expect_error("notes-00001.h5: array \"clicks\" has 6 elements, not 7");
  notes.ids.pop_back();
  write_notes_shard(folder.path(), set, 1, notes);
  expect_error("notes-00001.h5: array \"ids/offsets\" has 7 elements, not 8");
  notes = slice(data.notes, 7, 14);
  write_notes_shard(folder.path(), set, 1, notes);
  write_pairs_shard(folder.path(), set, 0, std::span(data.pairs.train).first(9), data.pairs.test);
  expect_error("array \"train/query\" has 9 elements, not 10");
}

}  // namespace
}  // namespace notellm

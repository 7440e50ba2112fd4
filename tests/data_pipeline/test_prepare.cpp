#include <fcntl.h>
#include <gtest/gtest.h>
#include <omp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>

#include "data_pipeline/pair_spool.h"
#include "data_pipeline/prepare.h"
#include "runtime/file_lock.h"
#include "runtime/files.h"
#include "runtime/random.h"
#include "runtime/stopwatch.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

constexpr int note_count = 150;

uint64_t draw(uint64_t a, uint64_t b, uint64_t below) { return random_bits(9, a, b) % below; }

std::string words(int note, int count, int stream) {
  static const char* list[] = {"red",  "shoes", "run", "fast",    "library",      "data",
                               "game", "of",    "war", "ancient", "na\xc3\xafve", "{x}"};
  std::string text;
  for (int i = 0; i < count; ++i) text.append(i ? " " : "").append(list[draw(note * 100 + i, stream, 12)]);
  return text;
}

// 150 notes in 3 categories (every tenth without one), 0 to 4 hashtags, some without text; 80 users of 2 to 9 clicks.
void write_corpus(const fs::path& folder) {
  std::string notes, clicks;
  for (int i = 0; i < note_count; ++i) {
    std::string tags;
    for (uint64_t h = draw(i, 1, 5); h > 0; --h)
      tags += fmt::format("{}\"tag {}\"", tags.empty() ? "" : ",", draw(i, 10 + h, 7));
    notes +=
        fmt::format(R"({{"id":"n{}","name":"name{}","title":"{}","content":"{}","category":"{}","hashtags":[{}]}})", i,
                    i, words(i, 5, 2), words(i, static_cast<int>(draw(i, 3, 60)), 4),
                    i % 10 ? "cat " + std::to_string(i % 3) : "", tags) +
        "\n";
  }
  notes += "{\"id\":\"blank\",\"name\":\"\",\"title\":\"\",\"content\":\" \"}\n";
  for (int u = 0; u < 80; ++u) {
    clicks += fmt::format("u{}\t", u);
    for (uint64_t c = 0; c < 2 + draw(u, 5, 8); ++c)
      clicks += fmt::format("{}n{}", c ? " " : "", draw(u, 100 + c, note_count / 2));
    clicks += "\n";
  }
  write_file(folder / "notes.jsonl", notes);
  write_file(folder / "clicks.tsv", clicks);
}

PrepareConfig config_in(const fs::path& folder) {
  PrepareConfig config;
  config.notes = (folder / "notes.jsonl").string();
  config.title = "{name}: {title}";
  config.shards = (folder / "shards").string();
  config.clicks.files = {(folder / "clicks.tsv").string()};
  config.clicks.stop_share = 1;
  config.tokenizer.vocabulary = 400;
  config.tokenizer.training_texts = 60;
  config.notes_per_shard = 40;
  config.pairs_per_shard = 50;
  return config;
}

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename().string()] = read_file(entry.path());
  return files;
}

void expect_same_files(const fs::path& a, const fs::path& b) {
  const auto left = contents(a), right = contents(b);
  EXPECT_EQ(left.size(), right.size());
  for (const auto& [name, bytes] : left) EXPECT_TRUE(right.contains(name) && right.at(name) == bytes) << name;
}

// Each rank prepares for itself in a folder of its own.
class Prepare : public testing::Test {
 protected:
  void SetUp() override { write_corpus(folder.path()); }
  PrepareReport run() { return prepare(config, self); }

  const TempDir folder;
  PrepareConfig config = config_in(folder.path());
  Communicator self = Communicator::self();
};

TEST_F(Prepare, MakesShardsThatReadBack) {
  const PrepareReport report = run();
  EXPECT_FALSE(report.up_to_date);
  const Shards shards = read_shards(config.shards);
  EXPECT_EQ(shards.notes.size(), note_count);
  EXPECT_EQ(report.notes.notes, note_count);
  EXPECT_EQ(report.notes.empty, 1);
  EXPECT_EQ(report.set.note_shards(), 4);
  EXPECT_GT(report.set.pair_shards(), 1);
  EXPECT_EQ(std::ssize(shards.pairs.train), report.train.pairs);
  EXPECT_EQ(std::ssize(shards.pairs.test), report.test.pairs);
  EXPECT_GT(report.test.pairs, 0);
  EXPECT_EQ(shards.notes.ids[17], "n17");
  EXPECT_EQ(shards.notes.titles[17], "name17: " + words(17, 5, 2));
  EXPECT_EQ(shards.notes.category_names, (std::vector<std::string>{"cat 0", "cat 1", "cat 2"}));
  EXPECT_EQ(shards.notes.category_id[17], 2);
  EXPECT_EQ(shards.notes.category_id[20], -1);
  const Tokenizer tokenizer = Tokenizer::load(fs::path(config.shards) / "tokenizer.model");
  EXPECT_EQ(tokenizer.digest(), shards.notes.tokenizer_digest);
  EXPECT_EQ(tokenizer.decode(shards.notes.category[17], Place::goes_on), " cat 2");
  EXPECT_TRUE(tokenizer.decode(shards.notes.category_input[17], Place::goes_on).starts_with(" {'title': name17: "));
  const int64_t clicks = std::accumulate(shards.notes.clicks.begin(), shards.notes.clicks.end(), int64_t{0});
  EXPECT_EQ(clicks, report.clicks.kept_clicks[0]);
  EXPECT_EQ(std::count(shards.notes.in_pool.begin(), shards.notes.in_pool.end(), 1), report.clicks.pool);
  EXPECT_FALSE(fs::exists(folder / "shards.partial"));
  EXPECT_NE(report.describe().find("151 lines, 150 notes (1 without text skipped)"), std::string::npos)
      << report.describe();
}

TEST_F(Prepare, AnyNumberOfThreadsMakesTheSameBytes) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  run();
  omp_set_num_threads(3);
  const std::string one = config.shards;
  config.shards += "3";
  config.memory_mb = 512;
  run();
  omp_set_num_threads(threads);
  expect_same_files(one, config.shards);
}

TEST_F(Prepare, ASecondRunFindsTheShardsUpToDate) {
  const PrepareReport first = run();
  const auto written = fs::last_write_time(fs::path(config.shards) / "shards.json");
  config.shards += "/";  // the same folder
  config.memory_mb /= 2;
  const PrepareReport second = run();
  EXPECT_TRUE(second.up_to_date);
  EXPECT_EQ(second.set.id, first.set.id);
  EXPECT_EQ(fs::last_write_time(fs::path(config.shards) / "shards.json"), written);
}

TEST_F(Prepare, AnyChangeMakesThemAgain) {
  const std::string first = run().set.id;
  config.prompt.title_tokens = 7;
  const PrepareReport other = run();
  EXPECT_FALSE(other.up_to_date);
  EXPECT_NE(other.set.id, first);
  EXPECT_EQ(prepared_config(config.shards).prompt.title_tokens, 7);
  write_file(config.clicks.files[0], read_file(config.clicks.files[0]) + "new\tn1 n2\n");
  EXPECT_FALSE(run().up_to_date);
  fs::remove(fs::path(config.shards) / "pairs-00000.h5");
  EXPECT_FALSE(run().up_to_date);
  fs::remove(fs::path(config.shards) / "tokenizer.model");
  EXPECT_FALSE(run().up_to_date);
  fs::remove(fs::path(config.shards) / "shards.json");
  EXPECT_FALSE(run().up_to_date);
  write_file(fs::path(config.shards) / "shards.json", "{");
  EXPECT_FALSE(run().up_to_date);
  EXPECT_TRUE(run().up_to_date);
}

TEST_F(Prepare, DamagedShardsAreMadeAgain) {
  run();
  const fs::path shards = config.shards;
  const auto whole = contents(shards);
  for (const char* name : {"notes-00000.h5", "pairs-00001.h5"}) {
    write_file(shards / name, whole.at(name).substr(0, 1000));
    EXPECT_FALSE(run().up_to_date) << name;
    EXPECT_TRUE(contents(shards) == whole) << name;
  }
  write_file(shards / "tokenizer.model", Tokenizer::train({"other words"}, 300));
  EXPECT_FALSE(run().up_to_date);
  EXPECT_TRUE(contents(shards) == whole);
}

// As if an older program, whose shards of the same input are others, had made them.
TEST_F(Prepare, ShardsWithAnotherIdAreMadeAgain) {
  config.notes_per_shard = config.pairs_per_shard = 1 << 16;
  const std::string id = run().set.id;
  ShardSet other = read_shard_set(config.shards);
  const Shards shards = read_shards(config.shards);
  other.id = "another";
  write_notes_shard(config.shards, other, 0, shards.notes);
  write_pairs_shard(config.shards, other, 0, shards.pairs.train, shards.pairs.test);
  finish_shards(config.shards, other);
  EXPECT_NO_THROW(read_shards(config.shards));
  const PrepareReport report = run();
  EXPECT_FALSE(report.up_to_date);
  EXPECT_EQ(report.set.id, id);
}

TEST_F(Prepare, WhatStandsBesideTheShardsStays) {
  run();
  fs::copy(config.shards, config.shards + ".old");
  config.prompt.title_tokens = 7;
  EXPECT_FALSE(run().up_to_date);
  EXPECT_EQ(prepared_config(config.shards + ".old").prompt.title_tokens, PromptConfig{}.title_tokens);
}

// A click log for two readers, the k-th of which gets what content_of(k) returns, after all that this does.
class ServedLog {
 public:
  ServedLog(fs::path log, std::function<std::string(int)> content_of) : log_(std::move(log)) {
    make();
    thread_ = std::thread([this, content_of] {
      for (int k : {0, 1}) {
        std::ofstream out(log_);  // waits for the reader
        out << content_of(k);
        make();  // the next reader is not to wait at this one's
      }
    });
  }
  ~ServedLog() {
    const int rest = open(log_.c_str(), O_RDONLY | O_NONBLOCK);  // for readers that did not come
    thread_.join();
    close(rest);
  }

 private:
  void make() const {
    const fs::path fresh = log_.string() + ".fresh";
    ASSERT_EQ(mkfifo(fresh.c_str(), 0600), 0);
    fs::rename(fresh, log_);
  }
  const fs::path log_;
  std::thread thread_;
};

// The log is read twice: for its checksum, after that of the notes; and between the two passes over the notes.
TEST_F(Prepare, WhatChangesWhileItIsReadIsAnError) {
  const fs::path log = config.clicks.files[0];
  const std::string clicks = read_file(log), notes = read_file(config.notes);
  const size_t second = notes.find('\n') + 1, third = notes.find('\n', second) + 1;
  const std::string swapped = notes.substr(second, third - second) + notes.substr(0, second) + notes.substr(third);
  for (int reader : {0, 1}) {
    const ServedLog served(log, [&](int k) {
      if (k == reader) write_file(config.notes, swapped);
      return clicks;
    });
    EXPECT_ERROR(data, "notes.jsonl: changed while it was read; run prepare again", run());
    write_file(config.notes, notes);
  }
  {
    const ServedLog served(log, [&](int k) { return k == 0 ? clicks : clicks + "more\tn1 n2\n"; });
    EXPECT_ERROR(data, "clicks.tsv: changed while it was read; run prepare again", run());
  }
  EXPECT_FALSE(fs::exists(folder / "shards"));
  EXPECT_FALSE(fs::exists(folder / "shards.partial"));
  const ServedLog served(log, [&](int) { return clicks; });
  EXPECT_FALSE(run().up_to_date);
}

TEST_F(Prepare, OneAtATimeMakesAFolder) {
  std::optional<FileLock> other(std::in_place, folder / "shards.lock", "", "", 0);
  std::thread end([&other] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    other.reset();
  });
  const Stopwatch watch;
  EXPECT_FALSE(run().up_to_date);
  EXPECT_GE(watch.seconds(), 0.3);
  end.join();
  EXPECT_FALSE(fs::exists(folder / "shards.lock"));
  other.emplace(folder / "shards.lock", "", "", 0);
  EXPECT_TRUE(run().up_to_date);  // without writing
}

TEST_F(Prepare, ALinkToAFolderStays) {
  fs::create_directories(folder / "large_disk/shards");
  fs::create_directory_symlink(folder / "large_disk/shards", folder / "shards");
  run();
  EXPECT_TRUE(fs::is_symlink(folder / "shards"));
  EXPECT_TRUE(has_shards(folder / "large_disk/shards"));
  EXPECT_TRUE(run().up_to_date);
}

TEST_F(Prepare, WhatACutShortRunLeftIsCleared) {
  fs::create_directories(folder / "shards.partial");
  write_file(folder / "shards.partial" / "notes-00099.h5", "half a");
  run();
  EXPECT_FALSE(fs::exists(folder / "shards.partial"));
  EXPECT_FALSE(fs::exists(folder / "shards" / "notes-00099.h5"));
  EXPECT_NO_THROW(read_shards(config.shards));
}

TEST_F(Prepare, AGivenTokenizerIsTaken) {
  run();
  fs::copy_file(folder / "shards" / "tokenizer.model", folder / "given.model");
  const std::string digest = read_shard_set(config.shards).tokenizer_digest;
  config.tokenizer.model = (folder / "given.model").string();
  config.prompt.preset = PromptPreset::released;
  const PrepareReport report = run();
  EXPECT_FALSE(report.up_to_date);
  EXPECT_EQ(report.set.tokenizer_digest, digest);
  EXPECT_EQ(report.set.preset, "released");
  write_file(folder / "given.model", "not a model");
  EXPECT_ERROR(data, "given.model: not a SentencePiece model", run());
  EXPECT_EQ(read_shard_set(config.shards).id, report.set.id);
}

// Its two files go into the shards; another file beside it makes them again.
TEST_F(Prepare, AGivenTokenizerJsonIsTaken) {
  const fs::path golden = fs::path(NOTELLM_SOURCE_DIR) / "tests/golden/tokenizers/qwen2", given = folder / "given";
  fs::create_directory(given);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::copy_file(golden / name, given / name);
  run();
  config.tokenizer.model = (given / "tokenizer.json").string();
  const PrepareReport report = run();
  EXPECT_EQ(report.set.inputs.count((given / "tokenizer_config.json").string()), 1);
  EXPECT_FALSE(fs::exists(folder / "shards" / "tokenizer.model"));
  const Tokenizer tokenizer = Tokenizer::load_stored(config.shards);
  EXPECT_EQ(tokenizer.digest(), Tokenizer::load(golden / "tokenizer.json").digest());
  const Shards shards = read_shards(config.shards);
  EXPECT_EQ(shards.notes.prompt.emb, tokenizer.emb());
  EXPECT_EQ(shards.notes.prompt.eos, tokenizer.eos());
  EXPECT_EQ(shards.notes.prompt.vocabulary, tokenizer.vocabulary());
  EXPECT_TRUE(tokenizer.decode(shards.notes.category_input[17], Place::goes_on).starts_with(" {'title': name17: "));
  EXPECT_TRUE(run().up_to_date);
  fs::remove(folder / "shards" / "tokenizer_config.json");
  EXPECT_FALSE(run().up_to_date);
  write_file(given / "tokenizer_config.json", R"({"eos_token": "<|im_start|>"})");
  EXPECT_FALSE(run().up_to_date);
  EXPECT_NE(read_shards(config.shards).notes.prompt.eos, tokenizer.eos());
  fs::remove(given / "tokenizer_config.json");
  EXPECT_ERROR(io, "tokenizer_config.json", run());
}

TEST_F(Prepare, RefusesImpossibleConfigurations) {
  const PrepareConfig good = config;
  config.notes = "";
  EXPECT_ERROR(usage, "data.notes: no file is given", run());
  config = good;
  config.shards = "";
  EXPECT_ERROR(usage, "data.shards: no folder is given", run());
  config = good;
  config.clicks.files = {};
  EXPECT_ERROR(usage, "data.clicks.files: no file is given", run());
  config = good;
  config.memory_mb = 100;
  EXPECT_ERROR(usage, "data.memory_mb: 100 is too little", run());
  config = good;
  config.prompt.max_note_tokens = 3;
  EXPECT_ERROR(usage, "data.prompt.max_note_tokens: 3 is too small", run());
  config = good;
  config.notes = (folder / "none.jsonl").string();
  EXPECT_ERROR(io, "none.jsonl", run());
  config = good;
  config.tokenizer.vocabulary = 270;
  EXPECT_ERROR(usage, "data.tokenizer.vocabulary", run());
  EXPECT_FALSE(fs::exists(folder / "shards"));
  EXPECT_FALSE(fs::exists(folder / "shards.partial"));
}

TEST_F(Prepare, ReplacesOnlyAFolderOfShards) {
  fs::create_directories(folder / "shards");
  write_file(folder / "shards" / "thesis.tex", "precious");
  EXPECT_ERROR(usage, "thesis.tex is not a file of shards", run());
  EXPECT_EQ(read_file(folder / "shards" / "thesis.tex"), "precious");
  config.shards = config.notes;
  EXPECT_ERROR(usage, "notes.jsonl is not a folder", run());
}

TEST_F(Prepare, EmptyInput) {
  write_file(config.clicks.files[0], "u1\tn1\nu2\tn2\n");
  EXPECT_ERROR(data, "no training user is left", run());
  write_file(config.clicks.files[0], "");
  EXPECT_ERROR(data, "no training user is left", run());
  write_corpus(folder.path());
  config.cooccurrence.lower = 29;
  EXPECT_ERROR(data, "no training pair is left", run());
  write_file(config.notes, "");
  EXPECT_ERROR(data, "holds no note with text", run());
  EXPECT_FALSE(fs::exists(folder / "shards"));
}

TEST_F(Prepare, AFullDiskKeepsTheOldShards) {
  const std::string id = run().set.id;
  config.prompt.content_tokens = 70;
  for (const auto& [bytes, file] : {std::pair{3000, "tokenizer.model"}, {10'000, "notes-00000.h5"}}) {
    {
      const test::SmallDisk small(bytes);
      EXPECT_ERROR(io, file, run());
    }
    EXPECT_EQ(read_shard_set(config.shards).id, id);
    EXPECT_FALSE(fs::exists(folder / "shards.partial"));
  }
  EXPECT_NO_THROW(read_shards(config.shards));
  EXPECT_FALSE(run().up_to_date);
}

TEST(PairSpool, GivesAllRanksPairsInOrder) {
  const TempDir folder;
  int32_t next = 0;
  for (int rank = 0; rank < 3; ++rank) {
    PairSpool spool(folder.path(), "train", rank);
    for (int i = 0; i < 2 * rank; ++i) {
      const Pair pair = {next++, rank, 0.5f};
      spool.append({&pair, 1});
    }
    spool.finish();
  }
  SpooledPairs pairs(folder.path(), "train", 3);
  for (const auto& [first, count] : {std::pair{0, 4}, {4, 2}, {6, 0}}) {
    const std::vector<Pair> part = pairs.next(4);
    ASSERT_EQ(std::ssize(part), count);
    for (int i = 0; i < count; ++i) EXPECT_EQ(part[i].query, first + i);
  }
  pairs.remove();
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(PairSpool, AFullDiskIsAnError) {
  const TempDir folder;
  PairSpool spool(folder.path(), "train", 0);
  const std::vector<Pair> pairs(1000);
  const test::SmallDisk small(3000);
  EXPECT_ERROR(io, "train-0.spool: cannot be written: disk full", {
    spool.append(pairs);
    spool.finish();
  });
}

// All ranks together against one rank alone, on the same input.
TEST(PrepareOnRanks, AnyNumberOfRanksMakesTheSameBytes) {
  Communicator world = Communicator::world();
  std::unique_ptr<TempDir> folder;
  if (world.rank() == 0) {
    folder = std::make_unique<TempDir>();
    write_corpus(folder->path());
  }
  const fs::path path = world.broadcast("folder", folder ? folder->path().string() : "", 0);
  PrepareConfig config = config_in(path);
  const PrepareReport report = prepare(config, world);
  EXPECT_TRUE(prepare(config, world).up_to_date);
  if (world.rank() == 0) {
    config.shards += "_alone";
    Communicator self = Communicator::self();
    const PrepareReport alone = prepare(config, self);
    EXPECT_EQ(report.tokens, alone.tokens);
    EXPECT_EQ(report.hashtags, alone.hashtags);
    EXPECT_EQ(report.train.pairs, alone.train.pairs);
    EXPECT_EQ(report.train.scored, alone.train.scored);
    expect_same_files(path / "shards", config.shards);
  }
  world.barrier("done");
}

}  // namespace
}  // namespace notellm

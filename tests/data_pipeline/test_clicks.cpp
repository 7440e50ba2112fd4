#include <gtest/gtest.h>
#include <omp.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "data_pipeline/clicks.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"
#include "tests/support/unpack.h"

namespace notellm {
namespace {

using test::TempDir;

constexpr int64_t plenty = 64 << 20;

NoteIndex letters(const std::string& ids) {
  NoteIndex index;
  for (char id : ids) index.add(std::string(1, id));
  return index;
}

// A log in a folder of its own, and what it is read with; held-out users only where a test asks for them.
struct Log {
  TempDir folder;
  ClicksConfig config;
  NoteIndex notes = letters("abcdefgh");

  explicit Log(const std::string& text, ClickFormat format = ClickFormat::lists) {
    config.format = format;
    config.heldout_share = 0;
    config.stop_share = 1;
    add(text);
  }
  void add(const std::string& text) {
    const auto file = folder / ("clicks" + std::to_string(config.files.size() + 1) + ".txt");
    write_file(file, text);
    config.files.push_back(file.string());
  }
  ClickLists read(int64_t memory_bytes = plenty) const {
    const auto scratch = folder / "scratch";
    std::filesystem::create_directory(scratch);
    return read_clicks(config, notes, scratch, memory_bytes);
  }
};

// A list as notes, and for each of them the notes that follow.
struct PlainList {
  std::vector<int32_t> notes;
  std::vector<std::set<int32_t>> followers;
  bool operator==(const PlainList&) const = default;
};

std::vector<PlainList> scan(const ClickLists& lists, Split split, int64_t buffer_bytes = 4096) {
  std::vector<PlainList> all;
  ClickLists::Scanner scanner(lists, split, buffer_bytes);
  for (UserList list; scanner.next(list);) {
    PlainList plain{{list.notes.begin(), list.notes.end()}, {}};
    for (int64_t i = 0; i < list.size(); ++i) {
      std::set<int32_t> followers;
      for (int64_t j = list.tail(i); j < i; ++j) followers.insert(list.notes[j]);
      for (int64_t j = i + 1; j < list.size(); ++j) followers.insert(list.notes[j]);
      EXPECT_EQ(std::ssize(followers), list.followers(i));
      plain.followers.push_back(followers);
    }
    all.push_back(plain);
  }
  return all;
}

// The same from the clicks in order, by the definition.
PlainList plain_list(const std::vector<int32_t>& clicks) {
  PlainList plain;
  for (auto click = clicks.rbegin(); click != clicks.rend(); ++click)
    if (std::find(plain.notes.begin(), plain.notes.end(), *click) == plain.notes.end())
      plain.notes.insert(plain.notes.begin(), *click);
  for (int32_t a : plain.notes) {
    std::set<int32_t> followers(std::find(clicks.begin(), clicks.end(), a), clicks.end());
    followers.erase(a);
    plain.followers.push_back(followers);
  }
  return plain;
}

TEST(Clicks, Lists) {
  const Log log("u\ta b c\nv\tc  a \r\n\nw\th");  // no end of line; a list that is too short
  const ClickLists lists = log.read();
  const std::vector<PlainList> all = scan(lists, Split::train);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0], (PlainList{{0, 1, 2}, {{1, 2}, {2}, {}}}));
  EXPECT_EQ(all[1], (PlainList{{2, 0}, {{0}, {}}}));
  EXPECT_TRUE(scan(lists, Split::heldout).empty());
  const ClicksStats& stats = lists.stats();
  EXPECT_EQ(stats.lines, 4);
  EXPECT_EQ(stats.clicks, 6);
  EXPECT_EQ(stats.users[0], 3);
  EXPECT_EQ(stats.kept_users[0], 2);
  EXPECT_EQ(stats.kept_clicks[0], 5);
  EXPECT_EQ(stats.short_users, 1);
  EXPECT_EQ(stats.pool, 3);
  EXPECT_EQ(lists.notes(), 8);
  EXPECT_EQ(std::vector<int32_t>(lists.training_users().begin(), lists.training_users().end()),
            (std::vector<int32_t>{2, 1, 2, 0, 0, 0, 0, 0}));
  EXPECT_EQ(lists.in_pool()[2], 1);
  EXPECT_EQ(lists.in_pool()[7], 0);
}

TEST(Clicks, RepeatedNotes) {
  // a b a: b follows a, and a follows b. a a b a: the same. b c b a: by the last click c b a; b is followed by c and a.
  const Log log("u\ta b a\nv\ta a b a\nw\tb c b a\nx\ta a a");
  const ClickLists lists = log.read();
  const std::vector<PlainList> all = scan(lists, Split::train);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0], (PlainList{{1, 0}, {{0}, {1}}}));
  EXPECT_EQ(all[1], all[0]);
  EXPECT_EQ(all[2], (PlainList{{2, 1, 0}, {{0, 1}, {0, 2}, {}}}));
  EXPECT_EQ(lists.training_users()[0], 3);  // a user counts once
  EXPECT_EQ(lists.stats().short_users, 1);  // a alone is one note
}

TEST(Clicks, Csv) {
  Log log("user,note,timestamp\nu,a,5\nu,b,5\r\nu,c,7\nv,a,1\n", ClickFormat::csv);
  log.add("time,x,y\n");  // a header alone
  log.add("v,b,2\nv2,c,0\nv2,b,3");
  const ClickLists lists = log.read();
  const std::vector<PlainList> all = scan(lists, Split::train);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].notes, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(all[1].notes, (std::vector<int32_t>{0, 1}));  // from two files
  EXPECT_EQ(all[2].notes, (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(lists.stats().clicks, 7);
  EXPECT_EQ(lists.stats().lines, 9);
}

TEST(Clicks, TimeWindow) {
  Log log("u,a,4\nu,b,5\nu,c,9\nu,d,10\nv,a,11\nw,a,5\nw,b,6\n", ClickFormat::csv);
  log.config.from = 5;
  log.config.to = 10;
  const ClickLists lists = log.read();
  const std::vector<PlainList> all = scan(lists, Split::train);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].notes, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(all[1].notes, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(lists.stats().outside_window, 3);
  EXPECT_EQ(lists.stats().empty_users, 1);
  EXPECT_EQ(lists.stats().users[0], 2);
}

TEST(Clicks, StopShareThenLength) {
  // a: 3 of 4 users, over one half; b: 2 of 4, not over. Without a, w has one note left and is dropped.
  Log log("u\ta b c\nv\ta b d\nw\ta e\nx\tc d e f");
  log.config.stop_share = 0.5;
  log.config.max_user_notes = 3;
  const ClickLists lists = log.read();
  const std::vector<PlainList> all = scan(lists, Split::train);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].notes, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(all[1].notes, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(lists.stats().stopped_notes, 1);
  EXPECT_EQ(lists.stats().short_users, 1);
  EXPECT_EQ(lists.stats().long_users, 1);
  EXPECT_EQ(lists.in_pool()[0], 0);
  EXPECT_EQ(lists.in_pool()[4], 0);
}

// The least bound is one user: a share of few users is less.
TEST(Clicks, ANoteOfOneUserIsNotOverAnyStopShare) {
  for (double share : {0., 0.01}) {
    Log log("u\ta b c\nv\tc d e\nw\tc f");
    log.config.stop_share = share;
    const ClickLists lists = log.read();
    const std::vector<PlainList> all = scan(lists, Split::train);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].notes, (std::vector<int32_t>{0, 1}));
    EXPECT_EQ(all[1].notes, (std::vector<int32_t>{3, 4}));
    EXPECT_EQ(lists.stats().stopped_notes, 1);
    EXPECT_EQ(lists.stats().stopped_users, 1);
  }
}

TEST(Clicks, ThatNoTrainingUserIsLeftHasACauseAndAKey) {
  const auto expect = [](const std::string& cause, Log log, auto change) {
    change(log.config);
    EXPECT_ERROR(data, "clicks1.txt: no training user is left: " + cause, log.read());
  };
  expect("there is no click in it; check data.clicks.files", Log(""), [](ClicksConfig&) {});
  expect("all clicks are outside the time window; check data.clicks.from", Log("u,a,1\nu,b,2\n", ClickFormat::csv),
         [](ClicksConfig& config) { config.from = 3; });
  expect("all clicks are on notes that data.notes does not have", Log("u\tx y\n"),
         [](ClicksConfig& config) { config.max_unknown_share = 1; });
  expect("all users are held out; lower data.clicks.heldout_share (1)", Log("u\ta b\nv\tc d\n"),
         [](ClicksConfig& config) { config.heldout_share = 1; });
  expect("most have too few notes without those over data.clicks.stop_share (0.01); raise it",
         Log("u\ta b\nv\ta b\nw\ta b c\nx\ta\n"), [](ClicksConfig& config) { config.stop_share = 0.01; });
  expect("most have too few different notes; lower data.clicks.min_user_notes (3)", Log("u\ta b\nv\tc d\nw\ta a\n"),
         [](ClicksConfig& config) { config.min_user_notes = 3; });
  expect("most have too many notes; raise data.clicks.max_user_notes (2)", Log("u\ta b c\nv\tc d e\nw\ta\n"),
         [](ClicksConfig& config) { config.max_user_notes = 2; });
  expect("most have one note only, and pairs need two", Log("u\ta\nv\tb\n"), [](ClicksConfig&) {});
}

TEST(Clicks, HeldoutByHashOfTheUserAlone) {
  Log log("");
  std::string text;
  std::vector<std::string> users;
  for (int i = 0; i < 20'000; ++i) users.push_back(fmt::format("user {}", i));
  for (const std::string& user : users) text += user + "\ta b\n";
  write_file(log.config.files[0], text);
  log.config.heldout_share = 0.1;
  log.config.seed = 7;
  std::array<int64_t, 2> expected = {};
  for (const std::string& user : users) ++expected[static_cast<double>(hash64(user, 7)) < 0.1 * 0x1p64];
  const ClickLists lists = log.read();
  EXPECT_EQ(lists.stats().kept_users[0], expected[0]);
  EXPECT_EQ(lists.stats().kept_users[1], expected[1]);
  EXPECT_EQ(lists.training_users()[0], expected[0]);
  EXPECT_NEAR(static_cast<double>(expected[1]), 2000, 5 * std::sqrt(20'000 * 0.1 * 0.9));
  // Stop share: of training users only. b is clicked by each of the held-out users and by few others.
  text.clear();
  for (const std::string& user : users)
    text += user + (static_cast<double>(hash64(user, 7)) < 0.1 * 0x1p64 ? "\tb c d\n" : "\tc d e\n");
  text += users[0] + "\tb c\n";
  write_file(log.config.files[0], text);
  log.config.stop_share = 0.01;
  log.config.min_user_notes = 2;
  EXPECT_ERROR(data, "data.clicks.stop_share (0.01)",
               log.read());  // c, d, e are stopped, b is not: one note is too few
}

// Random lists with repeats, as text in both formats, with some unknown notes.
struct RandomLog {
  std::vector<std::vector<int32_t>> clicks;  // known ones
  std::string lists, csv;
  int64_t unknown = 0;
  NoteIndex notes;
};

RandomLog random_log() {
  constexpr int32_t notes = 500;
  RandomLog log;
  for (int32_t row = 0; row < notes; ++row) log.notes.add(fmt::format("note{}", row));
  std::mt19937 random(3);
  for (int user = 0; user < 2000; ++user) {
    // Most lists are short; some lines are longer than the smallest block.
    const int length = user % 500 == 3 || user % 500 == 4 ? 3000 : static_cast<int>(random() % 12);
    const int32_t range = user % 2 ? 6 : notes;  // half of the users repeat themselves
    log.clicks.emplace_back();
    log.lists += fmt::format("u{:05}\t", user);
    for (int i = 0; i < length; ++i) {
      const bool unknown = random() % 10 == 0;
      const auto row = static_cast<int32_t>(random() % range);
      const std::string id = unknown ? "other" : fmt::format("note{}", row);
      log.unknown += unknown;
      if (!unknown) log.clicks.back().push_back(row);
      log.lists += (i ? " " : "") + id;
      log.csv += fmt::format("u{:05},{},{}\n", user, id, i / 3);
    }
    log.lists += "\n";
  }
  return log;
}

TEST(Clicks, SameAsPlainForAnyBlocksAndThreads) {
  const RandomLog random = random_log();
  std::vector<PlainList> expected;
  for (const auto& clicks : random.clicks) {
    PlainList plain = plain_list(clicks);
    if (plain.notes.size() >= 2 && plain.notes.size() <= 100) expected.push_back(std::move(plain));
  }
  for (ClickFormat format : {ClickFormat::lists, ClickFormat::csv}) {
    const bool csv = format == ClickFormat::csv;
    const std::string& text = csv ? random.csv : random.lists;
    Log log("", format);
    // Two files, cut inside a user's lines in the CSV.
    const size_t cut = text.find('\n', text.size() / 2) + 1;
    write_file(log.config.files[0], text.substr(0, cut));
    log.add(text.substr(cut));
    log.notes = random.notes;
    for (int threads : {1, 3}) {
      for (int64_t memory : {int64_t{1}, plenty}) {
        const int before = omp_get_max_threads();
        omp_set_num_threads(threads);
        const ClickLists lists = log.read(memory);
        omp_set_num_threads(before);
        EXPECT_EQ(lists.stats().unknown_clicks, random.unknown);
        EXPECT_EQ(lists.stats().long_users, 4);  // of the eight with 3000 clicks, four have few different notes
        ASSERT_EQ(scan(lists, Split::train, 1), expected) << "csv " << csv << ", threads " << threads;
      }
    }
  }
}

TEST(Clicks, UnknownNotes) {
  Log log("u\ta z1 b\nv\tz2 z3 a");
  EXPECT_EQ(log.read().stats().unknown_clicks, 3);  // one half is not more than one half
  log.config.max_unknown_share = 0.49;
  EXPECT_ERROR(data, "clicks1.txt: 3 of 6 clicks are on notes that notes.jsonl does not have (the first is \"z1\")",
               log.read());
}

TEST(Clicks, BadLists) {
  EXPECT_ERROR(data, "clicks1.txt:2: no tab after the user", Log("u\ta b\nv a b\n").read());
  EXPECT_ERROR(data, "id id id …; to read CSV, set data.clicks.format to csv", Log("u,a,1\n").read());
  EXPECT_ERROR(data, "clicks1.txt:3: the user is empty", Log("u\ta b\n\n\ta b\n").read());
  Log second("u\ta b\n");
  second.add("v\ta\nw");
  EXPECT_ERROR(data, "clicks2.txt:2: no tab", second.read());
}

TEST(Clicks, BadCsv) {
  const auto read = [](const std::string& text) { Log(text, ClickFormat::csv).read(); };
  const std::string good = "u,a,1\nu,b,2\n";
  EXPECT_ERROR(data, "clicks1.txt:3: expected three fields", read(good + "v,a\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: expected three fields", read(good + "v,a,3,4\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: the user is empty", read(good + ",a,3\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: the note is empty", read(good + "v,,3\n"));
  for (const char* time : {"", "x", "-1", "1.5", "1 ", "2024-01-01", "99999999999999999999"})
    EXPECT_ERROR(data, "clicks1.txt:3: the timestamp must be an integer", read(good + "v,a," + time + "\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: the timestamp", read(good + "user,note,timestamp\n"));  // a header not in front
  EXPECT_ERROR(data, "clicks1.txt:3: quoted fields", read(good + "\"v\",a,3\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: user \"t\" after user \"u\"", read(good + "t,a,3\n"));
  EXPECT_ERROR(data, "clicks1.txt:3: user \"u\": timestamp 1 after 2", read(good + "u,a,1\n"));
  EXPECT_ERROR(data, "then time: LC_ALL=C sort -t, -k1,1 -k3,3n /", read(good + "t,a,3\n"));
  // Byte order, in which capitals are first and a longer name is after its beginning.
  read("U,a,1\nU,b,2\nu,a,3\nuu,a,1\n");
  Log files(good, ClickFormat::csv);
  files.add("u,c,1\n");
  EXPECT_ERROR(data, "clicks2.txt:1: user \"u\": timestamp 1 after 2", files.read());
  EXPECT_ERROR(data, files.config.files[0] + " " + files.config.files[1], files.read());
}

// What the message says to run gives a log that is read, with or without headers and last line breaks.
TEST(Clicks, TheCommandThatIsNamedSorts) {
  for (const std::string header : {"", "user,note,timestamp\n", "\"user\",\"note\",\"time\"\n"}) {
    Log log(header + "v,a,2\nv,b,1\nu,c,2", ClickFormat::csv);
    log.add("w,a,1\nu,d,1\nw,b,2");
    log.add(header + "a,a,1");
    std::string message;
    try {
      log.read();
    } catch (const Error& error) {
      message = error.what();
    }
    const size_t command = message.find("then time: ");
    ASSERT_NE(command, message.npos) << message;
    const std::string sorted = (log.folder / "sorted.csv").string();
    ASSERT_EQ(std::system(("( " + message.substr(command + 11) + " ) >" + sorted).c_str()), 0) << message;
    EXPECT_EQ(read_file(sorted), "a,a,1\nu,d,1\nu,c,2\nv,b,1\nv,a,2\nw,a,1\nw,b,2\n");
    log.config.files = {sorted};
    EXPECT_EQ(log.read().stats().kept_users[0], 3);
  }
}

TEST(Clicks, ChecksumsOfTheFiles) {
  const RandomLog random = random_log();
  Log log(random.lists);
  log.add("");
  log.add("x\tnote1 note2");
  log.notes = random.notes;
  for (int64_t memory : {int64_t{1}, plenty}) {
    const ClickLists lists = log.read(memory);
    ASSERT_EQ(lists.checksums().size(), 3u);
    for (int i : {0, 1, 2}) EXPECT_EQ(lists.checksums()[i], checksum_file(log.config.files[i])) << i;
  }
}

TEST(Clicks, OutOfOrderAnywhere) {
  // Blocks of 1 KB are 73 lines: the bad line is in turn inside of one and at the seam of two.
  std::vector<std::string> lines;
  for (int i = 0; i < 100; ++i) lines.push_back(fmt::format("user{:04},a,{}\n", i / 3, i % 3));
  for (size_t bad = 64; bad < 84; ++bad) {
    std::string text;
    for (size_t i = 0; i < lines.size(); ++i) text += i == bad ? "a,a,0\n" : lines[i];
    Log log(text, ClickFormat::csv);
    EXPECT_ERROR(data, fmt::format("clicks1.txt:{}: user \"a\" after", bad + 1), log.read(1));
  }
}

TEST(Clicks, BadConfig) {
  Log log("u\ta b\n");
  log.config.from = 5;
  EXPECT_ERROR(usage, "data.clicks.from and data.clicks.to need timestamps", log.read());
  log.config.format = ClickFormat::csv;
  log.config.to = 5;
  EXPECT_ERROR(usage, "data.clicks.to is 5, not after data.clicks.from, 5", log.read());
  log.config = {};
  EXPECT_ERROR(usage, "data.clicks.files", log.read());
  log.config.files = {(log.folder / "absent").string()};
  EXPECT_ERROR(io, "absent: cannot be read", log.read());
  log.config.files = {log.folder.path().string()};
  EXPECT_ERROR(io, "cannot be read", log.read());
  log.config.min_user_notes = 101;
  EXPECT_ERROR(usage, "data.clicks.max_user_notes is 100", log.read());
}

TEST(Clicks, NothingIsLeftInScratch) {
  const RandomLog random = random_log();
  Log log(random.lists);
  log.notes = random.notes;
  { const ClickLists lists = log.read(); }
  EXPECT_TRUE(std::filesystem::is_empty(log.folder / "scratch"));
  EXPECT_ERROR(io, "absent", read_clicks(log.config, log.notes, log.folder / "absent", plenty));

  // A file may not grow beyond 4 KB: the same as a full disk, but for the reason given.
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit = {4096, before.rlim_max};
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_ERROR(io, "writing a scratch file failed", log.read());
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_TRUE(std::filesystem::is_empty(log.folder / "scratch"));
}

TEST(Clicks, FrozenData) {
  NOTELLM_NEEDS_SHARED("data/debian-bookworm/clicks_bd.tsv.xz");
  const TempDir folder;
  NoteIndex notes;  // the ids are 0, 1, 2, …
  for (int i = 0; i < 63'436; ++i) notes.add(std::to_string(i));
  ClicksConfig config;
  config.files = {test::unpack(test::shared_path("data/debian-bookworm/clicks_bd.tsv.xz"), folder).string()};
  const ClickLists lists = read_clicks(config, notes, folder.path(), plenty);
  const ClicksStats& stats = lists.stats();
  EXPECT_EQ(stats.lines, 34'273);
  EXPECT_EQ(stats.clicks, 270'132);
  EXPECT_EQ(stats.unknown_clicks, 0);
  EXPECT_EQ(stats.users[0], 30'837);
  EXPECT_EQ(stats.users[1], 3'436);
  EXPECT_EQ(stats.stopped_notes, 89);
  EXPECT_EQ(stats.pool, 20'532);  // by an independent computation, as the others
}

}  // namespace
}  // namespace notellm

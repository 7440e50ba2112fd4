#include <gtest/gtest.h>
#include <omp.h>

#include <set>

#include "data_pipeline/notes.h"
#include "runtime/files.h"
#include "tests/support/debian_notes.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/unpack.h"

namespace notellm {
namespace {

using test::TempDir;

std::filesystem::path write_text(const std::filesystem::path& file, const std::string& content) {
  write_file(file, content);
  return file;
}

std::vector<Note> read_all(NoteReader& reader, int64_t lines = 4096) {
  std::vector<Note> all;
  for (std::vector<Note> batch; reader.read(batch, lines);) all.insert(all.end(), batch.begin(), batch.end());
  return all;
}

// Reads `content` as notes.jsonl.
void read_text(const std::string& content, const std::string& title = "{title}") {
  const TempDir folder;
  NoteReader reader(write_text(folder / "notes.jsonl", content), title);
  read_all(reader);
}

const std::string good = R"({"id": "a", "title": "t", "content": "c"})"
                         "\n";

TEST(NoteIndex, RowsInOrderOfAdd) {
  NoteIndex index;
  EXPECT_EQ(index.find("a"), -1);
  EXPECT_EQ(index.add("a"), 0);
  EXPECT_EQ(index.add(""), 1);
  EXPECT_EQ(index.add("ab"), 2);
  EXPECT_EQ(index.add("a"), -1);
  EXPECT_EQ(index.size(), 3);
  EXPECT_EQ(index.find("ab"), 2);
  EXPECT_EQ(index.find(""), 1);
  EXPECT_EQ(index.id(2), "ab");
}

TEST(NoteIndex, ManyIds) {
  constexpr int32_t count = 100'000;
  NoteIndex index;
  for (int32_t i = 0; i < count; ++i) ASSERT_EQ(index.add(std::to_string(7 * i)), i);
  std::vector<std::string> texts;
  for (int32_t i = 0; i < 7 * count; i += 3) texts.push_back(std::to_string(i));
  std::vector<std::string_view> ids(texts.begin(), texts.end());
  std::vector<int32_t> rows(ids.size());
  index.find(ids.data(), std::ssize(ids), rows.data());
  for (size_t k = 0; k < ids.size(); ++k) {
    const int32_t i = 3 * static_cast<int32_t>(k), row = i % 7 == 0 ? i / 7 : -1;
    ASSERT_EQ(rows[k], row) << ids[k];
    ASSERT_EQ(index.find(ids[k]), row) << ids[k];
  }
}

TEST(NoteReader, Fields) {
  const TempDir folder;
  const auto file = write_text(folder / "notes.jsonl",
                               R"({"id":"n1","name":"vim","title":"Vi","content":"Text","category":"editors",)"
                               R"("hashtags":["ui::text","","x"]})"
                               "\r\n\n"
                               R"({"id":-7,"name":"ü\n","title":"","content":"雪","category":null,"hashtags":null})"
                               "\n"
                               R"({"id":18446744073709551615,"name":"z","title":"{q}","content":""})");
  NoteReader reader(file, "<{name}: {title}>");
  const std::vector<Note> notes = read_all(reader);
  ASSERT_EQ(notes.size(), 3u);
  EXPECT_EQ(notes[0].id, "n1");
  EXPECT_EQ(notes[0].title, "<vim: Vi>");
  EXPECT_EQ(notes[0].content, "Text");
  EXPECT_EQ(notes[0].category, "editors");
  EXPECT_EQ(notes[0].hashtags, (std::vector<std::string>{"ui::text", "x"}));
  EXPECT_EQ(notes[1].id, "-7");
  EXPECT_EQ(notes[1].title, "<ü\n: >");
  EXPECT_EQ(notes[1].content, "雪");
  EXPECT_EQ(notes[1].category, "");
  EXPECT_TRUE(notes[1].hashtags.empty());
  EXPECT_EQ(notes[2].id, "18446744073709551615");
  EXPECT_EQ(notes[2].title, "<z: {q}>");
  EXPECT_EQ(reader.index().find("-7"), 1);
  EXPECT_EQ(reader.stats().lines, 4);
  EXPECT_EQ(reader.stats().notes, 3);
  EXPECT_EQ(reader.stats().empty, 0);
}

TEST(NoteReader, EmptyTextIsSkippedAndCounted) {
  const TempDir folder;
  const std::string nothing = R"({"id":"b","title":" \t","content":"\n"})"
                              "\n";
  // More than a batch of two lines without a note does not look like the end.
  const auto file =
      write_text(folder / "notes.jsonl", nothing + nothing + nothing + good + R"({"id":"c","title":"","content":"x"})");
  NoteReader reader(file);
  const std::vector<Note> notes = read_all(reader, 2);
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_EQ(notes[0].id, "a");
  EXPECT_EQ(notes[1].id, "c");
  EXPECT_EQ(reader.index().find("b"), -1);
  EXPECT_EQ(reader.index().find("c"), 1);
  EXPECT_EQ(reader.stats().empty, 3);
}

TEST(NoteReader, SameForAnyBatchAndThreads) {
  const TempDir folder;
  std::string content;
  for (int i = 0; i < 1000; ++i) content += fmt::format("{{\"id\":{},\"title\":\"t{}\",\"content\":\"\"}}\n", 3 * i, i);
  const auto file = write_text(folder / "notes.jsonl", content);
  for (int threads : {1, 3}) {
    for (int64_t lines : {1, 7, 5000}) {
      const int before = omp_get_max_threads();
      omp_set_num_threads(threads);
      NoteReader reader(file);
      const std::vector<Note> notes = read_all(reader, lines);
      omp_set_num_threads(before);
      ASSERT_EQ(notes.size(), 1000u);
      for (int i = 0; i < 1000; ++i) {
        ASSERT_EQ(notes[i].id, std::to_string(3 * i));
        ASSERT_EQ(notes[i].title, fmt::format("t{}", i));
        ASSERT_EQ(reader.index().find(notes[i].id), i);
      }
    }
  }
}

TEST(NoteReader, BadLines) {
  EXPECT_ERROR(data, "notes.jsonl:2: malformed JSON", read_text(good + R"({"id": "b", "title")"));
  EXPECT_ERROR(data, "notes.jsonl:3: malformed JSON", read_text(good + "\n{} x\n"));
  EXPECT_ERROR(data, "notes.jsonl:2: number overflow parsing '1e999'",
               read_text(good + R"({"id":"x1","title":"t","content":"c","price":1e999})"));
  EXPECT_ERROR(data, "notes.jsonl:2: an object {…} is expected, not array", read_text(good + "[1]\n"));
  EXPECT_ERROR(data, "notes.jsonl:1: no field \"id\"", read_text(R"({"title":"t","content":"c"})"));
  EXPECT_ERROR(data, "\"id\" must be text or an integer", read_text(R"({"id":1.5,"title":"t","content":"c"})"));
  EXPECT_ERROR(data, "\"id\" is empty", read_text(R"({"id":"","title":"t","content":"c"})"));
  EXPECT_ERROR(data, R"(no field "title", which data.title ("{title}") asks for)",
               read_text(R"({"id":1,"content":"c"})"));
  EXPECT_ERROR(data, "no field \"content\"", read_text(R"({"id":1,"title":"c"})"));
  EXPECT_ERROR(data, R"(no field "name", which data.title ("{name}: {title}") asks for)",
               read_text(good, "{name}: {title}"));
  EXPECT_ERROR(data, "\"content\" must be text, not null", read_text(R"({"id":1,"title":"t","content":null})"));
  EXPECT_ERROR(data, "\"category\" must be text, not number",
               read_text(R"({"id":1,"title":"t","content":"c","category":3})"));
  EXPECT_ERROR(data, "\"hashtags\" must be a list, not string",
               read_text(R"({"id":1,"title":"t","content":"c","hashtags":"x"})"));
  EXPECT_ERROR(data, "\"hashtags\" holds number",
               read_text(R"({"id":1,"title":"t","content":"c","hashtags":["x",1]})"));
}

TEST(NoteReader, ChecksumOfTheFile) {
  const TempDir folder;
  for (const std::string& content : {good, good + "\r\n\n" + R"({"id":"b","title":"","content":"c"})", good + " \n"}) {
    const auto file = write_text(folder / "notes.jsonl", content);
    NoteReader reader(file);
    read_all(reader, 2);
    EXPECT_EQ(reader.checksum(), checksum(content)) << content;
  }
}

TEST(NoteReader, InvalidUtf8) {
  // A byte that never occurs, a sequence cut short, an overlong one, a surrogate.
  for (const char* bytes : {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80"})
    EXPECT_ERROR(data, "notes.jsonl:2: invalid UTF-8 at byte",
                 read_text(good + "{\"id\":\"b\",\"title\":\"" + bytes + "\",\"content\":\"c\"}\n"));
}

TEST(NoteReader, DuplicateNamesBothLines) {
  EXPECT_ERROR(
      data, "notes.jsonl:4: id \"5\" is also that of line 2",
      read_text(good + R"({"id":5,"title":"t","content":"c"})" + "\n\n" + R"({"id":"5","title":"t","content":"c"})"));
}

TEST(NoteReader, FirstBadLineIsNamed) {
  std::string content;
  for (int i = 1; i <= 3000; ++i) {
    const bool bad = i == 1234 || i == 1235 || i == 2999;
    content += bad ? "{\n" : fmt::format("{{\"id\":{},\"title\":\"t\",\"content\":\"\"}}\n", i);
  }
  EXPECT_ERROR(data, "notes.jsonl:1234: ", read_text(content));
}

TEST(NoteReader, BadFiles) {
  EXPECT_ERROR(data, "holds no note with text (0 lines", read_text(""));
  EXPECT_ERROR(data, "holds no note with text (2 lines", read_text("\n\n"));
  EXPECT_ERROR(data, "1 notes without text", read_text(R"({"id":1,"title":"","content":""})"));
  EXPECT_ERROR(usage, "data.title \"{title\": write", read_text(good, "{title"));
  EXPECT_ERROR(usage, "data.title \"a {} b\": write", read_text(good, "a {} b"));
  const TempDir folder;
  EXPECT_ERROR(io, "absent.jsonl", NoteReader(folder / "absent.jsonl"));
  EXPECT_ERROR(io, folder.path().string(), NoteReader(folder.path()));
}

TEST(NoteReader, FrozenData) {
  NOTELLM_NEEDS_SHARED(test::debian_notes_file);
  const TempDir folder;
  const auto file = test::unpack(test::shared_path(test::debian_notes_file), folder);
  NoteReader reader(file, "{name}: {title}");
  std::vector<Note> batch;
  ASSERT_TRUE(reader.read(batch));
  EXPECT_EQ(batch[0].title, "0ad: Real-time strategy game of ancient warfare");
  std::set<std::string> categories;
  int64_t with_hashtags = 0;
  do {
    for (const Note& note : batch) {
      categories.insert(note.category);
      with_hashtags += !note.hashtags.empty();
    }
  } while (reader.read(batch));
  EXPECT_EQ(reader.stats().notes, 63'436);
  EXPECT_EQ(categories.size(), 58u);
  EXPECT_NEAR(static_cast<double>(with_hashtags) / 63'436, 0.48, 0.005);
}

}  // namespace
}  // namespace notellm

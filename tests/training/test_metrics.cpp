// What a run reports: lines that are on disk at once, a resumed run's files, and event files that TensorBoard reads.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"
#include "training/metrics.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.result.loss = 4.5 - 0.25 * static_cast<double>(step);
  m.result.contrastive = 4.25;
  m.result.token = 8.5;
  m.result.positive_similarity = 0.75;
  m.result.negative_similarity = -0.125;
  m.result.notes = 32;
  m.result.labels = 50;
  m.result.tokens = 640;
  m.result.unshared_tokens = 900;
  m.tau = 3.25;
  m.gradient_norm = 1.5;
  m.learning_rate = 0.002;
  m.seconds = 0.5;
  m.skipped = 1;
  return m;
}

// The lines of metrics.jsonl as they are on disk now.
std::vector<nlohmann::json> lines_of(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  const std::string text = read_file(run / "metrics.jsonl");
  EXPECT_TRUE(text.empty() || text.back() == '\n');
  for (size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1)
    lines.push_back(nlohmann::json::parse(text.substr(begin, text.find('\n', begin) - begin)));
  return lines;
}

std::vector<int64_t> steps_of(const fs::path& run) {
  std::vector<int64_t> steps;
  for (const auto& line : lines_of(run)) steps.push_back(line.at("step"));
  return steps;
}

TEST(Metrics, ALineIsOnDiskWhenItsStepIsDone) {
  const test::TempDir run;
  Metrics metrics(run.path(), 0, 3, 1);
  for (int64_t step : {1, 2, 3}) {
    metrics.step(metrics_of(step));
    EXPECT_EQ(static_cast<int64_t>(lines_of(run.path()).size()), step);
  }
  metrics.evaluation(3, {{"recall_100", 0.25}, {"mrr", 0.125}});
  const auto lines = lines_of(run.path());
  ASSERT_EQ(lines.size(), 4u);
  const std::map<std::string, double> expected = {{"step", 2},
                                                  {"loss", 4},
                                                  {"contrastive_loss", 4.25},
                                                  {"token_loss", 8.5},
                                                  {"tau", 3.25},
                                                  {"notes", 32},
                                                  {"positive_similarity", 0.75},
                                                  {"negative_similarity", -0.125},
                                                  {"labels", 50},
                                                  {"tokens", 640},
                                                  {"gradient_norm", 1.5},
                                                  {"learning_rate", 0.002},
                                                  {"seconds", 0.5},
                                                  {"skipped_steps", 1},
                                                  {"notes_per_second", 64},
                                                  {"tokens_per_second", 1280},
                                                  {"tokens_without_sharing", 900}};
  for (const auto& [key, value] : expected) EXPECT_EQ(lines[1].at(key).get<double>(), value) << key;
  EXPECT_GT(lines[1].at("memory_mib").get<double>(), 1);
  EXPECT_EQ(lines[3], nlohmann::json({{"step", 3}, {"recall_100", 0.25}, {"mrr", 0.125}}));
}

TEST(Metrics, NumbersThatAreNoneAreNull) {
  const test::TempDir run;
  Metrics metrics(run.path(), 0, 9, 10);
  StepMetrics m = metrics_of(1);
  m.result.loss = std::numeric_limits<double>::quiet_NaN();
  m.gradient_norm = std::numeric_limits<double>::infinity();
  metrics.step(m);
  const auto line = lines_of(run.path()).at(0);
  EXPECT_TRUE(line.at("loss").is_null());
  EXPECT_TRUE(line.at("gradient_norm").is_null());
  EXPECT_EQ(line.at("contrastive_loss"), 4.25);
}

TEST(Metrics, AResumedRunRepeatsNoStep) {
  const test::TempDir run;
  {
    Metrics metrics(run.path(), 0, 10, 1);
    for (int64_t step : {1, 2, 3, 4, 5}) metrics.step(metrics_of(step));
    metrics.evaluation(4, {{"mrr", 0.5}});
    metrics.evaluation(5, {{"mrr", 0.5}});
  }
  Metrics metrics(run.path(), 4, 10, 1);
  EXPECT_EQ(steps_of(run.path()), (std::vector<int64_t>{1, 2, 3, 4, 4}));
  metrics.step(metrics_of(5));
  EXPECT_EQ(steps_of(run.path()), (std::vector<int64_t>{1, 2, 3, 4, 4, 5}));
}

TEST(Metrics, ALineThatAKilledRunLeftHalfWrittenIsDropped) {
  const test::TempDir run;
  { Metrics(run.path(), 0, 10, 1).step(metrics_of(1)); }
  const std::string whole = read_file(run / "metrics.jsonl");
  for (size_t cut : {size_t{1}, whole.size() / 2, whole.size() - 2}) {
    write_file(run / "metrics.jsonl", whole + whole.substr(0, cut));
    Metrics metrics(run.path(), 1, 10, 1);
    metrics.step(metrics_of(2));
    EXPECT_EQ(steps_of(run.path()), (std::vector<int64_t>{1, 2})) << cut;
  }
}

TEST(Metrics, AFolderThatCannotBeWritten) {
  const test::TempDir run;
  EXPECT_ERROR(io, "metrics.jsonl", {
    fs::create_directory(run / "metrics.jsonl");
    Metrics metrics(run.path(), 0, 1, 1);
  });
}

// A disk that is full for some steps: nothing is thrown, and in the end every line is there, once.
TEST(Metrics, AFullDiskIsSurvived) {
  const test::TempDir run;
  spdlog::set_level(spdlog::level::off);
  Metrics metrics(run.path(), 0, 9, 100);
  metrics.step(metrics_of(1));
  const uintmax_t bound = fs::file_size(run / "metrics.jsonl") + 100;  // part of the next line
  {
    const test::SmallDisk disk(bound);
    for (int64_t step : {2, 3, 4}) metrics.step(metrics_of(step));
    EXPECT_EQ(fs::file_size(run / "metrics.jsonl"), bound);
    EXPECT_ERROR(io, "metrics.jsonl", metrics.finish());
  }
  metrics.step(metrics_of(5));
  metrics.finish();
  EXPECT_EQ(steps_of(run.path()), (std::vector<int64_t>{1, 2, 3, 4, 5}));
}

TEST(Metrics, ARemovedFolderIsMadeAnew) {
  const test::TempDir folder;
  spdlog::set_level(spdlog::level::off);
  Metrics metrics(folder / "run", 0, 9, 100);
  metrics.step(metrics_of(1));
  fs::remove_all(folder / "run");
  for (int64_t step : {2, 3}) metrics.step(metrics_of(step));
  metrics.finish();
  EXPECT_EQ(steps_of(folder / "run"), (std::vector<int64_t>{2, 3}));
}

// ---- An event file read by rules of its own: TFRecord (length, its checksum, message, its checksum) and protocol
// buffers.

// CRC-32C bit by bit, reflected polynomial (RFC 3720, appendix B.4).
uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (unsigned char byte : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t low = (crc ^ (byte >> bit)) & 1;
      crc = (crc >> 1) ^ (low ? 0x82f63b78u : 0);
    }
  return crc ^ 0xffffffffu;
}
// TFRecord's mask: rotated right by 15 bits, plus a constant.
uint32_t masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

template <class T>
T take(std::string_view& bytes) {
  T value{};
  if (bytes.size() < sizeof value) throw std::runtime_error("cut short");
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}

std::string_view take_bytes(std::string_view& bytes, uint64_t count) {
  if (bytes.size() < count) throw std::runtime_error("cut short");
  const std::string_view part = bytes.substr(0, count);
  bytes.remove_prefix(count);
  return part;
}

std::vector<std::string_view> records_of(std::string_view file) {
  std::vector<std::string_view> records;
  while (!file.empty()) {
    const std::string_view length_bytes = file.substr(0, 8);
    const auto length = take<uint64_t>(file);
    EXPECT_EQ(take<uint32_t>(file), masked(crc32c(length_bytes)));
    records.push_back(take_bytes(file, length));
    EXPECT_EQ(take<uint32_t>(file), masked(crc32c(records.back())));
  }
  return records;
}

struct ProtoField {
  int wire_type = -1;
  uint64_t number = 0;     // varint
  double real = 0;         // fixed64, fixed32
  std::string_view bytes;  // length-delimited
};

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<uint8_t>(bytes);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}

std::multimap<uint64_t, ProtoField> fields_of(std::string_view message) {
  std::multimap<uint64_t, ProtoField> fields;
  while (!message.empty()) {
    const uint64_t key = take_varint(message);
    ProtoField f;
    f.wire_type = static_cast<int>(key & 7);
    if (f.wire_type == 0)
      f.number = take_varint(message);
    else if (f.wire_type == 1)
      f.real = take<double>(message);
    else if (f.wire_type == 2)
      f.bytes = take_bytes(message, take_varint(message));
    else if (f.wire_type == 5)
      f.real = take<float>(message);
    else
      throw std::runtime_error("wire type");
    fields.emplace(key >> 3, f);
  }
  return fields;
}

fs::path event_file(const fs::path& run) {
  fs::path found;
  for (const auto& entry : fs::directory_iterator(run / "tensorboard")) {
    EXPECT_TRUE(found.empty());
    found = entry.path();
  }
  return found;
}

TEST(TensorBoard, TheTestsChecksumIsCrc32c) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}  // the published check value

// TensorBoard drops what older files say of the steps from the one in a session's start on.
TEST(TensorBoard, AResumedRunSaysFromWhichStepOn) {
  const test::TempDir run;
  const Metrics metrics(run.path(), 300, 400, 1000);
  const std::string file = read_file(event_file(run.path()));
  const auto records = records_of(file);
  ASSERT_EQ(records.size(), 2u);
  const auto event = fields_of(records[1]);
  EXPECT_EQ(event.find(2)->second.number, 301u);
  const auto session = fields_of(event.find(7)->second.bytes);
  EXPECT_EQ(session.find(1)->second.number, 1u);
}

TEST(TensorBoard, RecordsAndFields) {
  const test::TempDir run;
  Metrics metrics(run.path(), 0, 400, 1000);
  metrics.step(metrics_of(1));
  metrics.step(metrics_of(300));  // two bytes of varint
  metrics.evaluation(300, {{"recall_100", 0.25}});
  const fs::path path = event_file(run.path());
  EXPECT_NE(path.filename().string().find("tfevents"), std::string::npos);  // how TensorBoard finds it
  const std::string file = read_file(path);                                 // while it is still open for writing
  const auto records = records_of(file);
  ASSERT_EQ(records.size(), 4u);

  const auto first = fields_of(records[0]);
  EXPECT_EQ(first.find(3)->second.bytes, "brain.Event:2");
  EXPECT_GT(first.find(1)->second.real, 1.6e9);  // wall time in seconds

  std::map<std::string, double> scalars[3];
  const uint64_t steps[] = {1, 300, 300};
  for (int i = 0; i < 3; ++i) {
    const auto event = fields_of(records[i + 1]);
    EXPECT_EQ(event.find(1)->second.wire_type, 1);
    EXPECT_EQ(event.find(2)->second.number, steps[i]);
    const auto summary = fields_of(event.find(5)->second.bytes);
    for (auto [at, end] = summary.equal_range(1); at != end; ++at) {
      const auto value = fields_of(at->second.bytes);
      EXPECT_EQ(value.find(2)->second.wire_type, 5);
      scalars[i][std::string(value.find(1)->second.bytes)] = value.find(2)->second.real;
    }
  }
  EXPECT_EQ(scalars[0].at("loss"), 4.25);
  EXPECT_EQ(scalars[1].at("loss"), -70.5);
  EXPECT_EQ(scalars[1].at("token_loss"), 8.5);
  EXPECT_EQ(scalars[1].at("learning_rate"), 0.002f);
  EXPECT_EQ(scalars[2], (std::map<std::string, double>{{"recall_100", 0.25}}));
}

}  // namespace
}  // namespace notellm

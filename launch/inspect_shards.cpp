#include <algorithm>
#include <cstdio>

#include "data_pipeline/batch.h"
#include "data_pipeline/hdf5_file.h"
#include "data_pipeline/shards.h"
#include "data_pipeline/tokenizer.h"
#include "launch/inspect.h"
#include "launch/table.h"
#include "launch/vector_file.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

struct Lengths {
  int64_t least = 0, most = 0;
  double mean = 0;
};

Lengths lengths_of(const Ragged& lists) {
  Lengths lengths;
  for (int64_t i = 0; i < lists.size(); ++i) {
    const auto length = static_cast<int64_t>(lists[i].size());
    lengths.least = i == 0 ? length : std::min(lengths.least, length);
    lengths.most = std::max(lengths.most, length);
  }
  lengths.mean = static_cast<double>(lists.values.size()) / static_cast<double>(std::max<int64_t>(1, lists.size()));
  return lengths;
}

void add_lengths(Table& table, const char* name, const Ragged& lists) {
  const Lengths lengths = lengths_of(lists);
  table.row({name, fmt::format("{} to {} tokens, mean {:.1f}", lengths.least, lengths.most, lengths.mean)});
}

std::string count_with_share(int64_t n, int64_t of) {
  return fmt::format("{} ({:.1f} %)", format_count(n),
                     of == 0 ? 0.0 : 100.0 * static_cast<double>(n) / static_cast<double>(of));
}

void print_sequence(const char* task, const Tokenizer& tokenizer, const NoteTable& notes, const NoteExample& example) {
  std::vector<int32_t> sequence;
  int32_t first_label = 0;
  compose(notes, example, sequence, &first_label);
  std::printf("  %s (%zu tokens)\n    %s\n", task, sequence.size(), tokenizer.decode(sequence, Place::begins).c_str());
}

// Notes spread evenly over the rows [begin, end), as the model reads them.
void print_notes(const fs::path& folder, const NoteTable& notes, int64_t begin, int64_t end, int64_t count) {
  const Tokenizer tokenizer = shards_tokenizer(folder, notes);
  count = std::min(count, end - begin);
  for (int64_t i = 0; i < count; ++i) {
    const auto row = static_cast<int32_t>(begin + i * (end - begin - 1) / std::max<int64_t>(1, count - 1));
    std::printf("\nnote %s (row %d): %s\n  %s clicks in training%s\n", notes.ids[row].c_str(), row,
                notes.titles[row].c_str(), format_count(notes.clicks[row]).c_str(),
                notes.in_pool[row] ? "" : ", not in the pool");
    if (!notes.category[row].empty()) print_sequence("category task", tokenizer, notes, {row, Task::category, {}});
    std::vector<int32_t> topics;
    for (int32_t t = 0; t < std::min(notes.hashtags(row), notes.prompt.hashtag_guidance.size()); ++t)
      topics.push_back(t);
    if (!topics.empty()) print_sequence("hashtag task", tokenizer, notes, {row, Task::hashtags, topics});
    if (notes.category[row].empty() && topics.empty())
      print_sequence("no task: neither category nor hashtags", tokenizer, notes,
                     {row, Task::category, {}, Until::note});
  }
}

void print_tables(const Shards& shards) {
  const NoteTable& notes = shards.notes;
  const int64_t n = notes.size();
  Table table("ll");
  table.row({"training pairs", format_count(std::ssize(shards.pairs.train))});
  table.row({"test pairs", format_count(std::ssize(shards.pairs.test))});
  table.row({"notes", format_count(n)});
  table.row({"in the pool", count_with_share(std::count(notes.in_pool.begin(), notes.in_pool.end(), 1), n)});
  table.row(
      {"never clicked in training", count_with_share(std::count(notes.clicks.begin(), notes.clicks.end(), 0), n)});
  table.row({"with category",
             fmt::format("{}, of {} categories",
                         count_with_share(n - std::count(notes.category_id.begin(), notes.category_id.end(), -1), n),
                         format_count(std::ssize(notes.category_names)))});
  int64_t tagged = 0;
  for (int64_t i = 0; i < n; ++i) tagged += notes.hashtags(i) > 0;
  table.row({"with hashtags",
             fmt::format("{}, {} hashtags", count_with_share(tagged, n), format_count(notes.hashtag_inner.size()))});
  table.row({"instruction", fmt::format("{} tokens (category task)", notes.prompt.category_instruction.size())});
  add_lengths(table, "note part", notes.category_input);
  add_lengths(table, "category", notes.category);
  add_lengths(table, "hashtag", notes.hashtag_last);
  table.row({"tokens in use", format_count(notes.prompt.vocabulary)});
  std::printf("%s", table.text().c_str());
}

// Reads every array once, which shows damage in any part of the file.
void read_all(const Hdf5File& file) {
  Table table("lrr");
  table.row({"array", "type", "elements"});
  for (const std::string& line : file.list()) {  // "name  type [n]"
    const std::string name = line.substr(0, line.find("  ")), rest = line.substr(line.find("  ") + 2);
    const std::string type = rest.substr(0, rest.find(' '));
    if (type == "uint8") (void)file.read<uint8_t>(name);
    if (type == "int32") (void)file.read<int32_t>(name);
    if (type == "uint64") (void)file.read<uint64_t>(name);
    if (type == "float32") (void)file.read<float>(name);
    table.row({name, type, format_count(file.length(name))});
  }
  std::printf("\n%s", table.text().c_str());
}

void inspect_vectors(const fs::path& path) {
  const VectorFileInfo info = read_vector_file_info(path);
  Table table("ll");
  table.row({"what", "note vectors, written by 'notellm embed'"});
  table.row({"notes", format_count(info.notes)});
  table.row({"dimensions", std::to_string(info.dimensions)});
  table.row({"length", info.not_normalised == 0
                           ? "all 1 (normalised)"
                           : fmt::format("{} vectors are not of length 1", format_count(info.not_normalised))});
  for (const auto& [name, text] : info.attributes) table.row({name, text});
  std::printf("%s", table.text().c_str());
  if (info.not_normalised > 0)
    fail(ErrorKind::data, "{}: {} vectors are not of length 1", path.string(), info.not_normalised);
}

}  // namespace

void inspect_shards(const fs::path& folder, int64_t notes) {
  const ShardSet set = read_shard_set(folder);
  const Shards shards = read_shards(folder);
  Table table("ll");
  table.row({"what", fmt::format("shards of notes and pairs, written by 'notellm prepare': {} + {} files",
                                 set.note_shards(), set.pair_shards())});
  table.row({"set", set.id});
  table.row({"tokenizer", set.tokenizer_digest});
  table.row({"prompt preset", set.preset});
  for (const auto& [file, checksum] : set.inputs) table.row({"made from", fmt::format("{} ({})", file, checksum)});
  std::printf("%s", table.text().c_str());
  print_tables(shards);
  std::printf("all files read and checked\n");
  if (notes > 0) print_notes(folder, shards.notes, 0, shards.notes.size(), notes);
}

void inspect_hdf5(const fs::path& path, int64_t notes) {
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  Table table("ll");
  int64_t first_row = 0, rows = 0;
  {
    const Hdf5File file(path);
    const std::string format = file.text("format");
    if (format == vector_format) {
      if (notes > 0) fail(ErrorKind::usage, "--notes: {} holds vectors, not notes", path.string());
      return inspect_vectors(path);
    }
    table.row({"format", format});
    for (const char* name : {"set", "tokenizer", "preset", "notes", "first_row", "train_pairs", "test_pairs"})
      if (file.has_text(name)) table.row({name, file.text(name)});
    if (file.has_text("notes")) {
      first_row = std::stoll(file.text("first_row"));
      rows = std::stoll(file.text("notes"));
    }
    std::printf("%s", table.text().c_str());
    read_all(file);
  }
  if (!has_shards(folder)) {
    std::printf("all arrays read; %s is not beside the file, so that its content cannot be checked further\n",
                shard_set_file_name);
    if (notes > 0) fail(ErrorKind::io, "--notes: {} is not beside {}", shard_set_file_name, path.string());
    return;
  }
  const Shards shards = read_shards(folder);
  std::printf("all arrays read; checked with the other shards of the folder\n");
  if (notes == 0) return;
  if (rows == 0) fail(ErrorKind::usage, "--notes: {} holds pairs, not notes", path.string());
  if (first_row < 0 || first_row + rows > shards.notes.size())
    fail(ErrorKind::data, "{}: rows {} to {} are not among the {} notes of the folder", path.string(), first_row,
         first_row + rows, shards.notes.size());
  print_notes(folder, shards.notes, first_row, first_row + rows, notes);
}

}  // namespace notellm

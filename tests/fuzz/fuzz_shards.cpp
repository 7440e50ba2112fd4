// A folder of shards with one file that is not as it was written: an Error, or notes and pairs that keep their
// promises.
//
// The first byte says what the others are. 'n', 'p', 's': the bytes of notes-00000.h5, pairs-00000.h5, shards.json.
// 'N', 'P': edits of what is in notes-00000.h5 or pairs-00000.h5, which is then written whole: what the seal does not
// find, since a program that errs wrote it so. The rest of the folder is as it was (tests/support/tiny_shards.h).
#include <hdf5.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <variant>

#include "data_pipeline/hdf5_file.h"
#include "runtime/error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_shards.h"

using namespace notellm;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

using Array = std::variant<std::vector<uint8_t>, std::vector<int32_t>, std::vector<uint64_t>, std::vector<float>>;

// What is in a .h5 file of shards.
struct Content {
  std::map<std::string, std::string> texts;
  std::map<std::string, Array> arrays;
};

Content read_content(const std::filesystem::path& path) {
  const Hdf5File file(path);
  Content content;
  for (const char* name : {"format", "set", "tokenizer", "preset"}) content.texts[name] = file.text(name);
  for (const std::string& line : file.list()) {  // "name  type [n]"
    const std::string name = line.substr(0, line.find(' '));
    if (line.find(" uint8 ") != line.npos) content.arrays[name] = file.read<uint8_t>(name);
    if (line.find(" int32 ") != line.npos) content.arrays[name] = file.read<int32_t>(name);
    if (line.find(" uint64 ") != line.npos) content.arrays[name] = file.read<uint64_t>(name);
    if (line.find(" float32 ") != line.npos) content.arrays[name] = file.read<float>(name);
  }
  return content;
}

void write_content(const std::filesystem::path& path, const Content& content) {
  Hdf5Writer file;
  for (const auto& [name, text] : content.texts) file.write_text(name, text);
  for (const auto& [name, array] : content.arrays)
    std::visit([&, &name = name](const auto& values) { file.write(name, values); }, array);
  file.save(path);
}

struct Frame {
  test::TempDir folder;
  std::map<std::string, std::string> files;
  Content notes, pairs;
  Frame() {
    test::write_tiny_shards(folder.path(), test::tiny_data(8));
    for (const std::string& name : {notes_shard_name(0), pairs_shard_name(0), std::string(shard_set_file_name)})
      files[name] = read_file(folder / name);
    notes = read_content(folder / notes_shard_name(0));
    pairs = read_content(folder / pairs_shard_name(0));
    write_content(folder / notes_shard_name(0), notes);
    write_content(folder / pairs_shard_name(0), pairs);
    (void)read_shards(folder.path());  // what is written of them is a folder of shards too
    for (const auto& [name, bytes] : files) write_file(folder / name, bytes);
  }
};

// The fuzzer's bytes as numbers; zeros behind their end.
class Bytes {
 public:
  explicit Bytes(std::string_view bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  template <class T>
  T take() {
    T value = 0;
    const size_t n = std::min(sizeof(T), bytes_.size());
    std::memcpy(&value, bytes_.data(), n);
    bytes_.remove_prefix(n);
    return value;
  }

 private:
  std::string_view bytes_;
};

// One of a map that is not empty.
template <class Map>
auto pick(Map& map, Bytes& bytes) {
  return std::next(map.begin(), bytes.take<uint8_t>() % std::ssize(map));
}

void set_element(Array& array, Bytes& bytes, int64_t value) {
  std::visit(
      [&](auto& values) {
        const size_t i = bytes.take<uint16_t>();
        if (!values.empty())
          values[i % values.size()] = static_cast<typename std::decay_t<decltype(values)>::value_type>(value);
      },
      array);
}

void set_type(Array& array, int type) {
  const size_t n = std::visit([](const auto& values) { return values.size(); }, array);
  if (type == 0) array = std::vector<uint8_t>(n);
  if (type == 1) array = std::vector<int32_t>(n);
  if (type == 2) array = std::vector<uint64_t>(n);
  if (type == 3) array = std::vector<float>(n);
}

void edit(Content& content, Bytes& bytes) {
  const int what = bytes.take<uint8_t>() % 8;
  if (content.arrays.empty() || content.texts.empty()) return;
  const auto array = pick(content.arrays, bytes);
  if (what == 0) set_element(array->second, bytes, bytes.take<int8_t>());
  if (what == 1) set_element(array->second, bytes, bytes.take<int64_t>());
  if (what == 2) std::visit([n = bytes.take<uint16_t>() % 512](auto& values) { values.resize(n); }, array->second);
  if (what == 3) content.arrays.erase(array);
  if (what == 4) set_type(array->second, bytes.take<uint8_t>() % 4);
  if (what == 5) array->second = pick(content.arrays, bytes)->second;
  if (what == 6) content.texts.erase(pick(content.texts, bytes));
  if (what == 7) pick(content.texts, bytes)->second = std::string(bytes.take<uint8_t>(), bytes.take<char>());
}

void check_lists(const Ragged& lists, int64_t size, int32_t vocabulary) {
  require(lists.size() == size, "a list each");
  for (int64_t i = 0; i < size; ++i)
    for (const int32_t token : lists[i]) require(token >= 0 && token < vocabulary, "tokens are in the vocabulary");
}

void check(const Shards& shards) {
  const NoteTable& notes = shards.notes;
  const int64_t n = notes.size();
  for (const Ragged* lists : {&notes.category_input, &notes.hashtag_input, &notes.category})
    check_lists(*lists, n, notes.prompt.vocabulary);
  require(std::ssize(notes.hashtag_begin) == n + 1, "a note knows its hashtags");
  for (const Ragged* lists : {&notes.hashtag_inner, &notes.hashtag_last})
    check_lists(*lists, static_cast<int64_t>(notes.hashtag_begin.back()), notes.prompt.vocabulary);
  for (int64_t i = 0; i < n; ++i) {
    require(notes.hashtags(i) >= 0, "hashtags ascend");
    require(notes.category_id[i] < std::ssize(notes.category_names), "categories have names");
  }
  for (const Ragged* lists : {&notes.prompt.hashtag_instruction, &notes.prompt.hashtag_guidance})
    check_lists(*lists, notes.prompt.hashtag_guidance.size(), notes.prompt.vocabulary);
  require(std::ssize(notes.titles) == n && std::ssize(notes.clicks) == n && std::ssize(notes.in_pool) == n, "arrays");
  for (const auto* pairs : {&shards.pairs.train, &shards.pairs.test})
    for (const Pair& pair : *pairs)
      require(pair.query >= 0 && pair.query < n && pair.target >= 0 && pair.target < n, "pairs are of notes");
}

void expect_only_errors(const auto& work) {
  try {
    work();
  } catch (const Error&) {
  }
}

void read_and_check(const Frame& frame, const std::filesystem::path& path) {
  if (path.extension() == ".h5") expect_only_errors([&] { (void)Hdf5File(path).list(); });
  expect_only_errors([&] { check(read_shards(frame.folder.path())); });
  require(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL) == 0, "everything is closed");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Frame frame;
  if (size == 0) return 0;
  const std::string name = data[0] == 'n' || data[0] == 'N'   ? notes_shard_name(0)
                           : data[0] == 'p' || data[0] == 'P' ? pairs_shard_name(0)
                                                              : std::string(shard_set_file_name);
  const std::filesystem::path path = frame.folder / name;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'N' || data[0] == 'P') {
    Content content = data[0] == 'N' ? frame.notes : frame.pairs;
    for (Bytes bytes(rest); !bytes.empty();) edit(content, bytes);
    write_content(path, content);
  } else {
    write_file(path, rest);
  }
  read_and_check(frame, path);
  write_file(path, frame.files.at(name));
  return 0;
}

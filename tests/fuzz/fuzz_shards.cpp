// Any bytes as a file of a folder of shards: an Error, or notes and pairs that keep their promises.
//
// The first byte says which file the others are: 'n' notes-00000.h5, 'p' pairs-00000.h5, 's' shards.json. The rest of the
// folder is whole (tests/support/tiny_shards.h).
#include <hdf5.h>

#include <cstdio>
#include <cstdlib>

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

struct Frame {
  test::TempDir folder;
  std::map<std::string, std::string> files;
  Frame() {
    test::write_tiny_shards(folder.path(), test::tiny_data(8));
    for (const std::string& name : {notes_shard_name(0), pairs_shard_name(0), std::string(shard_set_file_name)})
      files[name] = read_file(folder / name);
    (void)read_shards(folder.path());
  }
};

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

}  // namespace

// The HDF5 library asks for as much memory as a damaged file says, and goes on where it gets none; over some damaged
// files it loses memory. What this program would leave open is counted below.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Frame frame;
  if (size == 0) return 0;
  const std::string name = data[0] == 'n'   ? notes_shard_name(0)
                           : data[0] == 'p' ? pairs_shard_name(0)
                                            : std::string(shard_set_file_name);
  const std::filesystem::path path = frame.folder / name;
  write_file(path, std::string_view(reinterpret_cast<const char*>(data) + 1, size - 1));
  if (path.extension() == ".h5") expect_only_errors([&] { (void)Hdf5File(path).list(); });
  expect_only_errors([&] { check(read_shards(frame.folder.path())); });
  require(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL) == 0, "everything is closed");
  write_file(path, frame.files.at(name));
  return 0;
}

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <numeric>

#include "data_pipeline/hdf5_file.h"
#include "runtime/files.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace notellm {
namespace {

using test::TempDir;

std::vector<int32_t> numbers(int n) {
  std::vector<int32_t> values(n);
  std::iota(values.begin(), values.end(), -5);
  return values;
}

void save_numbers(const std::filesystem::path& path, int n) {
  Hdf5Writer writer;
  writer.write("group/numbers", numbers(n));
  writer.write_text("format", "numbers 1");
  writer.save(path);
}

TEST(Hdf5File, RoundTrip) {
  const TempDir folder;
  const std::vector<uint8_t> bytes = {0, 255, 7};
  const std::vector<uint64_t> large = {0, uint64_t{1} << 63};
  const std::vector<float> scores = {0.5f, -1e30f};
  {
    Hdf5Writer writer;
    writer.write("bytes", bytes);
    writer.write("a/b/large", large);
    writer.write("a/scores", scores);
    writer.write("a/nothing", std::vector<int32_t>{});
    writer.write("long", numbers(200'000));  // several chunks, the last one partial
    writer.write_text("text", "caf\xc3\xa9");
    writer.write_text("empty", "");
    writer.save(folder / "x.h5");
  }
  const Hdf5File file(folder / "x.h5");
  EXPECT_EQ(file.read<uint8_t>("bytes"), bytes);
  EXPECT_EQ(file.read<uint64_t>("a/b/large"), large);
  EXPECT_EQ(file.read<float>("a/scores"), scores);
  EXPECT_EQ(file.read<int32_t>("a/nothing"), std::vector<int32_t>{});
  EXPECT_EQ(file.read<int32_t>("long"), numbers(200'000));
  EXPECT_EQ(file.text("text"), "caf\xc3\xa9");
  EXPECT_EQ(file.text("empty"), "");
  EXPECT_TRUE(file.has_text("text"));
  EXPECT_FALSE(file.has_text("bytes"));
  EXPECT_EQ(file.list(),
            (std::vector<std::string>{"a/b/large  uint64 [2]", "a/nothing  int32 [0]", "a/scores  float32 [2]",
                                      "bytes  uint8 [3]", "long  int32 [200,000]"}));
}

TEST(Hdf5File, SlicesGoOverChunks) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 200'000);
  const Hdf5File file(folder / "x.h5");
  std::vector<int32_t> slice(10);
  file.read("group/numbers", 65'530, std::span(slice));
  EXPECT_EQ(slice.front(), 65'525);
  EXPECT_EQ(slice.back(), 65'534);
  EXPECT_ERROR(data, "has 200000 elements", file.read("group/numbers", 199'995, std::span(slice)));
  EXPECT_ERROR(data, "group/numbers", file.read("group/numbers", -1, std::span(slice)));
}

TEST(Hdf5File, StoresInCompressedChunks) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 200'000);
  EXPECT_LT(std::filesystem::file_size(folder / "x.h5"), 200'000 * 4 / 4);
  const hid_t file = H5Fopen((folder / "x.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t data = H5Dopen2(file, "group/numbers", H5P_DEFAULT), create = H5Dget_create_plist(data);
  hsize_t chunk = 0;
  H5Pget_chunk(create, 1, &chunk);
  EXPECT_EQ(chunk, 65'536u);
  EXPECT_EQ(H5Pget_nfilters(create), 2);
  H5Pclose(create);
  H5Dclose(data);
  H5Fclose(file);
}

TEST(Hdf5File, TheSameContentGivesTheSameBytes) {
  const TempDir folder;
  save_numbers(folder / "a.h5", 100'000);
  struct timespec pause = {1, 100'000'000};  // times in HDF5 are in seconds
  nanosleep(&pause, nullptr);
  save_numbers(folder / "b.h5", 100'000);
  EXPECT_EQ(read_file(folder / "a.h5"), read_file(folder / "b.h5"));
}

TEST(Hdf5File, MissingAndForeignFiles) {
  const TempDir folder;
  EXPECT_ERROR(io, "none.h5: cannot be read: No such file", Hdf5File(folder / "none.h5"));
  EXPECT_ERROR(io, "Is a directory", Hdf5File(folder.path()));
  write_file(folder / "foreign.h5", "PK\x03\x04 this is a zip file");
  EXPECT_ERROR(data, "foreign.h5: not an HDF5 file of this program", Hdf5File(folder / "foreign.h5"));
  write_file(folder / "empty.h5", "");
  EXPECT_ERROR(data, "empty.h5: not an HDF5 file of this program", Hdf5File(folder / "empty.h5"));
  H5Fclose(H5Fcreate((folder / "other.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  EXPECT_ERROR(data, "other.h5: an HDF5 file of another program", Hdf5File(folder / "other.h5"));
}

TEST(Hdf5File, TheFirstLineIsTheChecksumOfTheRest) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 10);
  const std::string whole = read_file(folder / "x.h5");
  EXPECT_TRUE(whole.starts_with("notellm HDF5 file; XXH3-128 of what follows the first 512 bytes: " +
                                checksum(std::string_view(whole).substr(512)) + '\n'));
  EXPECT_EQ(whole.substr(512, 4), "\x89HDF");
}

TEST(Hdf5File, EveryTruncationIsFound) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 70'000);
  const std::string whole = read_file(folder / "x.h5");
  for (size_t size = 1; size < whole.size(); size += whole.size() / 23) {
    write_file(folder / "cut.h5", whole.substr(0, size));
    EXPECT_ERROR(data, "cut.h5", Hdf5File(folder / "cut.h5"));
  }
  write_file(folder / "cut.h5", whole + '\0');
  EXPECT_ERROR(data, "cut.h5: damaged or cut short", Hdf5File(folder / "cut.h5"));
}

// Wherever it lies: of some bytes the library would divide by zero, or read beyond its memory.
TEST(Hdf5File, EveryDamagedByteIsFound) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 100);
  const std::string whole = read_file(folder / "x.h5");
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    std::ofstream(folder / "x.h5", std::ios::binary) << damaged;
    EXPECT_ERROR(data, "x.h5: ", Hdf5File(folder / "x.h5"));
  }
}

TEST(Hdf5File, MissingAndWrongArrays) {
  const TempDir folder;
  save_numbers(folder / "x.h5", 3);
  const Hdf5File file(folder / "x.h5");
  EXPECT_ERROR(data, "x.h5: no array \"group/none\"", file.read<int32_t>("group/none"));
  EXPECT_ERROR(data, "no array \"group\"", file.length("group"));
  EXPECT_ERROR(data, "\"group/numbers\" is of int32, not of uint64", file.read<uint64_t>("group/numbers"));
  EXPECT_ERROR(data, "no attribute \"version\"", file.text("version"));
}

TEST(Hdf5File, AFileThatCannotBeWrittenLeavesNothing) {
  const TempDir folder;
  EXPECT_ERROR(io, "none", save_numbers(folder / "none" / "x.h5", 3));
  save_numbers(folder / "x.h5", 3);
  const std::string before = read_file(folder / "x.h5");
  struct rlimit limit, small;
  getrlimit(RLIMIT_FSIZE, &limit);
  small = limit;
  small.rlim_cur = 4096;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_ERROR(io, "x.h5", save_numbers(folder / "x.h5", 200'000));
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(folder / "x.h5"), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace notellm

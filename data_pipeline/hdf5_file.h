// Files of one-dimensional arrays and texts in HDF5.
//
// Arrays: uint8, int32, uint64 or f32, little-endian, in chunks of 64 Ki elements, shuffled and deflated (level 1). No
// times are stored: the same content gives the same bytes. Names are paths, "category/offsets"; groups come by
// themselves. Errors name the file and the array; the HDF5 library prints nothing. For the main thread only.
//
// Sealed: the file's first 512 bytes (HDF5's user block, which its readers skip) are a line of text with the checksum
// of all that follows, and zeros. It is compared before the HDF5 library sees the file: over damaged files 1.10 divides
// by zero, and reads and writes beyond its memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace notellm {

inline constexpr std::string_view hdf5_begin = "notellm HDF5";  // of every such file

// Builds a file in memory, so that a disk that fills up leaves nothing behind: at its end, write_file() puts it in
// place.
class Hdf5Writer {
 public:
  Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;
  ~Hdf5Writer();

  // T: uint8_t, int32_t, uint64_t or float.
  template <class T>
  void write(const std::string& name, std::span<const T> values);
  template <class T>
  void write(const std::string& name, const std::vector<T>& values) {
    write(name, std::span<const T>(values));
  }
  // A text attribute of the file, UTF-8, under 64 KB.
  void write_text(const std::string& name, const std::string& text);
  // Once; see save_hdf5.
  void save(const std::filesystem::path& path);

 private:
  int64_t file_;
};

// The two that Hdf5Writer is made of, for files with other arrays. A new file in memory: returns the library's id, to
// be closed by H5Fclose.
int64_t create_hdf5();
// Writes it, sealed, to `path` (see write_file: beside, then renamed). Throws Error(io).
void save_hdf5(int64_t file, const std::filesystem::path& path);

// Reads a file; takes no lock, so that many processes read it at once, from any file system.
class Hdf5File {
 public:
  // Throws Error(io): it cannot be read; Error(data): not such a file, cut short, or damaged in any place.
  explicit Hdf5File(const std::filesystem::path& path);
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;
  ~Hdf5File();

  // Throw Error(data): no such array or attribute, another type or more than one dimension, a slice that goes over the
  // end.
  bool has_text(const std::string& name) const;
  std::string text(const std::string& name) const;
  int64_t length(const std::string& name) const;
  template <class T>
  void read(const std::string& name, int64_t begin, std::span<T> values) const;  // [begin, begin + values.size())
  template <class T>
  std::vector<T> read(const std::string& name) const {
    std::vector<T> values(length(name));
    read(name, 0, std::span<T>(values));
    return values;
  }
  // Arrays and groups with their lengths, for people: "category/offsets  uint64 [1,001]".
  std::vector<std::string> list() const;

  const std::filesystem::path& path() const { return path_; }
  int64_t id() const { return file_; }  // the library's, for arrays that this class does not know

 private:
  std::filesystem::path path_;
  int64_t file_;
};

}  // namespace notellm

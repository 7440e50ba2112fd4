// Files that are never half-written, and checksums.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;  // of xxhash.h

namespace notellm {

// The whole file. Throws Error(io) naming the file and the reason.
std::string read_file(const std::filesystem::path& path);

// Writes beside `path`, syncs to disk, renames onto it: afterwards the file has the old content or the new, never part
// of it. A link stays: the file that it leads to is written so, or made. A device, a pipe and what a process holds open
// (/dev/stdout) are written into as they are. Throws Error(io) (disk full, no permission, …) with the file's name; the
// old file stays, nothing is left beside it.
void write_file(const std::filesystem::path& path, std::string_view content);
// … the pieces one after the other, so that large content need not be joined in memory.
void write_file(const std::filesystem::path& path, std::span<const std::string_view> pieces);
// … the pieces that `next` gives, an empty one at the end. A piece is written before `next` is called again; what it
// throws leaves the old file.
void write_file(const std::filesystem::path& path, const std::function<std::string_view()>& next);

// Makes a file of `bytes` bytes, the first of which are `begin` and the others zero, with its room on the disk taken
// now where the file system can. To be filled by FileInPlace, also from other processes. Throws Error(io); not synced.
void create_file(const std::filesystem::path& path, std::string_view begin, int64_t bytes);

// A file that is there, written in place: for several writers, each with its own bytes. Move-only.
class FileInPlace {
 public:
  // All functions throw Error(io) naming the file and the reason.
  explicit FileInPlace(const std::filesystem::path& path);
  FileInPlace(FileInPlace&& other) noexcept;
  ~FileInPlace();
  void write(int64_t offset, std::string_view content);
  // What was written is on the disk. Closes the file.
  void sync();

 private:
  std::filesystem::path path_;
  int descriptor_;
};

// The file `name` of `folder`, for a name that stands in a file that others may have made. Throws Error(checkpoint): a
// name that is no plain one ("../x", "/x", "a/b"), or of a link
// that leads out of the folder or nowhere.
std::filesystem::path file_inside(const std::filesystem::path& folder, const std::string& name);

// Throws Error(io) where write_file(path, …) could not begin: a folder that is missing or not to be written, a device
// or pipe that is not to be written, or `path` is a folder. To be asked before long work whose result goes there.
void require_writable(const std::filesystem::path& path);

// Makes the entries of a directory (new files, renames) durable.
void sync_directory(const std::filesystem::path& directory);

// The folder `made` takes the name `folder`; one that had that name before is removed afterwards. Between the two,
// atomically where the file system can, there is always a whole folder of that name; elsewhere by two renames, the old
// one to MADE.removed (a call that is killed may leave it; the next one removes it). Syncs the parent. Throws
// Error(io): a rename failed, and `folder` is as it was; or what was left of the old folder cannot be removed.
void replace_folder(const std::filesystem::path& made, const std::filesystem::path& folder);

// XXH3 128-bit hash as 32 hex digits.
std::string checksum(std::string_view content);
// … of a file from byte `begin` on. Throws Error(io).
std::string checksum_file(const std::filesystem::path& path, int64_t begin = 0);
// … of content that comes in pieces.
class Checksum {
 public:
  Checksum();
  void add(std::string_view piece);
  std::string text() const;  // of what was added so far

 private:
  std::unique_ptr<XXH3_state_s, void (*)(XXH3_state_s*)> state_;
};

// XXH3 64-bit hash of text: stable over machines and versions (held-out users, tokenizer digests).
uint64_t hash64(std::string_view text, uint64_t seed = 0);

}  // namespace notellm

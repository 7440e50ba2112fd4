#include "runtime/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "runtime/error.h"

namespace notellm {
namespace {
namespace fs = std::filesystem;
constexpr size_t chunk_bytes = 1 << 20;

// Owns a file descriptor.
class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(const fs::path& path, int flags) : File(open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int descriptor() const { return descriptor_; }
  bool ok() const { return descriptor_ >= 0; }
  // False when a write that the system put off has failed.
  bool close() { return ::close(std::exchange(descriptor_, -1)) == 0; }

 private:
  int descriptor_;
};

[[noreturn]] void fail_to_read(const fs::path& path) {
  const int error = errno;
  fail(ErrorKind::io, "cannot read {}: {}{}", path.string(), std::strerror(error),
       error == ENOENT ? " (check the path)" : "");
}

// Calls use(data, bytes) for each piece of the file.
template <class Use>
void read_pieces(const fs::path& path, int64_t begin, Use use) {
  File file(path, O_RDONLY);
  if (!file.ok() || (begin > 0 && lseek(file.descriptor(), begin, SEEK_SET) < 0)) fail_to_read(path);
  const auto piece = std::make_unique_for_overwrite<char[]>(chunk_bytes);
  while (true) {
    const ssize_t got = read(file.descriptor(), piece.get(), chunk_bytes);
    if (got == 0) return;
    if (got > 0)
      use(piece.get(), static_cast<size_t>(got));
    else if (errno != EINTR)
      fail_to_read(path);
  }
}

[[noreturn]] void fail_to_write(const fs::path& path) {
  const int error = errno;
  fail(ErrorKind::io, "cannot write {}: {}{}", path.string(), std::strerror(error),
       error == ENOSPC || error == EDQUOT ? "; free some space" : "");
}

bool write_all(int descriptor, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = write(descriptor, content.data(), content.size());
    if (written > 0)
      content.remove_prefix(static_cast<size_t>(written));
    else if (errno != EINTR)
      return false;
  }
  return true;
}

bool write_pieces(const File& file, const std::function<std::string_view()>& next) {
  if (!file.ok()) return false;
  for (std::string_view piece = next(); !piece.empty(); piece = next())
    if (!write_all(file.descriptor(), piece)) return false;
  return true;
}

bool write_beside(const fs::path& path, const std::function<std::string_view()>& next) {
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  return write_pieces(file, next) && fsync(file.descriptor()) == 0 && file.close();
}

// Where write_file(path, …) writes.
struct Destination {
  fs::path path;  // behind all links
  bool replaced;  // or written into
};

Destination destination_of(fs::path path) {
  std::error_code ignored;
  constexpr int most_links = 40;  // the kernel's bound: opening what is left of a circle fails
  for (int links = 0; links < most_links && fs::is_symlink(path, ignored); ++links) {
    // A link of /proc leads to an open file, whatever its text says.
    if (fs::canonical(path.parent_path(), ignored).string().starts_with("/proc/")) return {path, false};
    path = path.parent_path() / fs::read_symlink(path, ignored);
  }
  const fs::file_type type = fs::status(path, ignored).type();
  using enum fs::file_type;
  return {path, type == not_found || type == regular || type == directory};
}

// The process's own descriptor where the path names one: who writes to it too goes on behind what is written here.
int open_as_it_is(const fs::path& path) {
  std::error_code ignored;
  const fs::path own = fs::canonical("/proc/self/fd", ignored);
  if (own.empty() || fs::canonical(path.parent_path(), ignored) != own) return open(path.c_str(), O_WRONLY | O_CLOEXEC);
  std::fflush(stdout);
  return fcntl(std::stoi(path.filename()), F_DUPFD_CLOEXEC, 0);
}

bool write_into(const fs::path& path, const std::function<std::string_view()>& next) {
  File file(open_as_it_is(path));
  return write_pieces(file, next) && file.close();
}

void remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) fail(ErrorKind::io, "cannot remove {}: {}", folder.string(), error.message());
}

// False, with errno, where it failed: then `folder` is as it was.
bool rename_twice(const fs::path& made, const fs::path& folder, const fs::path& removed) {
  if (rename(folder.c_str(), removed.c_str()) != 0) return false;
  if (rename(made.c_str(), folder.c_str()) == 0) return true;
  const int error = errno;
  rename(removed.c_str(), folder.c_str());
  errno = error;
  return false;
}

std::string hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string text;
  for (unsigned char byte : canonical.digest) text += fmt::format("{:02x}", byte);
  return text;
}
}  // namespace

std::string read_file(const fs::path& path) {
  std::string content;
  std::error_code unknown_size;
  if (const auto size = fs::file_size(path, unknown_size); !unknown_size) content.reserve(size);
  read_pieces(path, 0, [&](const char* data, size_t bytes) { content.append(data, bytes); });
  return content;
}

void write_file(const fs::path& path, std::string_view content) {
  write_file(path, [&content] { return std::exchange(content, {}); });
}

void write_file(const fs::path& path, std::span<const std::string_view> pieces) {
  write_file(path, [&pieces]() -> std::string_view {
    while (!pieces.empty()) {
      const std::string_view piece = pieces.front();
      pieces = pieces.subspan(1);
      if (!piece.empty()) return piece;
    }
    return {};
  });
}

void write_file(const fs::path& path, const std::function<std::string_view()>& next) {
  const Destination to = destination_of(path);
  if (!to.replaced) {
    if (!write_into(to.path, next)) fail_to_write(path);
    return;
  }
  const fs::path beside = to.path.string() + ".tmp." + std::to_string(getpid());
  const auto write = [&] {
    try {
      return write_beside(beside, next);
    } catch (...) {
      unlink(beside.c_str());
      throw;
    }
  };
  if (!write() || rename(beside.c_str(), to.path.c_str()) != 0) {
    const int error = errno;
    unlink(beside.c_str());
    errno = error;
    fail_to_write(path);
  }
  sync_directory(to.path.parent_path());
}

void create_file(const fs::path& path, std::string_view begin, int64_t bytes) {
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!file.ok()) fail_to_write(path);
  int taken;
  do taken = fallocate(file.descriptor(), 0, 0, bytes);
  while (taken != 0 && errno == EINTR);
  // Not every file system can take room beforehand; there a full disk is found when the bytes come.
  if (taken != 0 && errno == EOPNOTSUPP) taken = ftruncate(file.descriptor(), bytes);
  if (taken != 0 || !write_all(file.descriptor(), begin) || !file.close()) fail_to_write(path);
}

FileInPlace::FileInPlace(const fs::path& path) : path_(path), descriptor_(open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail_to_write(path_);
}

FileInPlace::FileInPlace(FileInPlace&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

FileInPlace::~FileInPlace() {
  if (descriptor_ >= 0) close(descriptor_);
}

void FileInPlace::write(int64_t offset, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = pwrite(descriptor_, content.data(), content.size(), offset);
    if (written > 0) {
      content.remove_prefix(static_cast<size_t>(written));
      offset += written;
    } else if (errno != EINTR) {
      fail_to_write(path_);
    }
  }
}

void FileInPlace::sync() {
  if (fsync(descriptor_) != 0 || close(std::exchange(descriptor_, -1)) != 0) fail_to_write(path_);
}

fs::path file_inside(const fs::path& folder, const std::string& name) {
  const fs::path path = folder / name;
  if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos || name.find('\0') != name.npos)
    fail(ErrorKind::checkpoint, "{}: a file named '{}' would lie outside of the folder", folder.string(), name.c_str());
  if (fs::is_symlink(path) && !fs::exists(path)) fail(ErrorKind::checkpoint, "{} is a link to nothing", path.string());
  const fs::path real = fs::weakly_canonical(path);
  if (real.parent_path() != fs::canonical(folder))
    fail(ErrorKind::checkpoint,
         "{} is a link out of the folder, to {}: copy the folder with what its links name (cp -rL)", path.string(),
         real.string());
  return path;
}

void require_writable(const fs::path& path) {
  const Destination to = destination_of(path);
  const fs::path folder = to.path.has_parent_path() ? to.path.parent_path() : fs::path(".");
  std::error_code unknown;
  if (fs::is_directory(to.path, unknown)) fail(ErrorKind::io, "cannot write {}: it is a folder", path.string());
  if (to.replaced && !fs::is_directory(folder, unknown))
    fail(ErrorKind::io, "cannot write {}: there is no folder {}", path.string(), folder.string());
  if (access(to.replaced ? folder.c_str() : to.path.c_str(), to.replaced ? W_OK | X_OK : W_OK) != 0)
    fail_to_write(path);
}

void sync_directory(const fs::path& directory) {
  const fs::path name = directory.empty() ? "." : directory;
  File file(name, O_RDONLY | O_DIRECTORY);
  // Some network file systems know no sync of a directory, and say EINVAL: there is nothing more to do there.
  if (!file.ok() || (fsync(file.descriptor()) != 0 && errno != EINVAL))
    fail(ErrorKind::io, "cannot sync directory {}: {}", name.string(), std::strerror(errno));
}

void replace_folder(const fs::path& made, const fs::path& folder) {
  const fs::path removed = made.string() + ".removed";
  remove_folder(removed);  // of a call that was killed
  bool renamed = renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0;
  if (!renamed && errno == ENOENT)  // there is no older one
    renamed = rename(made.c_str(), folder.c_str()) == 0;
  else if (!renamed && (errno == EINVAL || errno == ENOSYS))  // the file system cannot
    renamed = rename_twice(made, folder, removed);
  if (!renamed) fail(ErrorKind::io, "cannot rename {} to {}: {}", made.string(), folder.string(), std::strerror(errno));
  sync_directory(folder.parent_path());
  remove_folder(made);
  remove_folder(removed);
}

std::string checksum(std::string_view content) { return hex(XXH3_128bits(content.data(), content.size())); }

Checksum::Checksum() : state_(XXH3_createState(), [](XXH3_state_s* state) { XXH3_freeState(state); }) {
  XXH3_128bits_reset(state_.get());
}

void Checksum::add(std::string_view piece) { XXH3_128bits_update(state_.get(), piece.data(), piece.size()); }

std::string Checksum::text() const { return hex(XXH3_128bits_digest(state_.get())); }

std::string checksum_file(const fs::path& path, int64_t begin) {
  Checksum sum;
  read_pieces(path, begin, [&](const char* data, size_t bytes) { sum.add({data, bytes}); });
  return sum.text();
}

uint64_t hash64(std::string_view text, uint64_t seed) { return XXH3_64bits_withSeed(text.data(), text.size(), seed); }

}  // namespace notellm

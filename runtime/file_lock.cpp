#include "runtime/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "runtime/error.h"
#include "runtime/log.h"
#include "runtime/stopwatch.h"

namespace notellm {

namespace fs = std::filesystem;

FileLock::FileLock(const fs::path& file, const std::string& busy, const char* key, double patience_seconds)
    : file_(file) {
  std::error_code unable;
  made_folder_ = file.has_parent_path() && fs::create_directories(file.parent_path(), unable);
  for (const Stopwatch watch; !try_lock();) {
    if (watch.seconds() >= patience_seconds)
      fail(ErrorKind::usage, "{} (it holds {}): wait for its end, or choose another folder with --set {}=…", busy,
           file_.string(), key);
    if (!waited_)
      spdlog::info("another process holds {}: waits up to {:.0f} s for its end", file_.string(), patience_seconds);
    waited_ = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

// The file is removed by the one who had it, so that what was opened before may not be the file any more.
bool FileLock::try_lock() {
  while (true) {
    descriptor_ = open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail(ErrorKind::io, "cannot write {}: {}", file_.string(), std::strerror(errno));
    if (flock(descriptor_, LOCK_EX | LOCK_NB) == 0) {
      if (is_still_the_file()) return true;
    } else if (errno != EWOULDBLOCK && errno != EINTR) {
      spdlog::warn("{}: {}; take care that no other process writes to this folder", file_.string(),
                   std::strerror(errno));
      return true;
    } else if (errno == EWOULDBLOCK) {
      close(descriptor_);
      return false;
    }
    close(descriptor_);
  }
}

bool FileLock::is_still_the_file() const {
  struct stat here, there;
  return fstat(descriptor_, &here) == 0 && stat(file_.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

FileLock::~FileLock() {
  std::error_code ignored;
  fs::remove(file_, ignored);
  if (made_folder_) fs::remove(file_.parent_path(), ignored);  // does nothing where there is more in it
  close(descriptor_);
}

}  // namespace notellm

#include "training/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <iterator>
#include <thread>

#include "runtime/error.h"
#include "runtime/log.h"
#include "runtime/stopwatch.h"

namespace notellm {

namespace fs = std::filesystem;

RunLock::RunLock(const fs::path& run, double patience_seconds) : file_(run / "lock") {
  std::error_code unable;
  fs::create_directories(run, unable);
  descriptor_ = open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(ErrorKind::io, "cannot write {}: {}", file_.string(), std::strerror(errno));
  bool waits = false;
  for (const Stopwatch watch; flock(descriptor_, LOCK_EX | LOCK_NB) != 0;) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) {
      spdlog::warn("{}: {}; take care that no other training writes to this folder", file_.string(),
                   std::strerror(errno));
      return;
    }
    if (watch.seconds() >= patience_seconds) {
      close(descriptor_);
      fail(ErrorKind::usage,
           "another training writes to {} (it holds {}): wait for its end, or choose another folder with --set "
           "train.run=…",
           run.string(), file_.string());
    }
    if (!waits)
      spdlog::info("another training holds {}: waits up to {:.0f} s for its end", file_.string(), patience_seconds);
    waits = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

RunLock::~RunLock() {
  std::error_code ignored;
  const fs::path run = file_.parent_path();
  if (std::distance(fs::directory_iterator(run, ignored), fs::directory_iterator()) == 1) fs::remove_all(run, ignored);
  close(descriptor_);
}

}  // namespace notellm

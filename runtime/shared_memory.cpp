#include "runtime/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "runtime/error.h"

namespace notellm {

SharedMemory SharedMemory::map(const std::string& name, int64_t bytes, bool create) {
  const auto refuse = [&](int error) {
    fail(ErrorKind::internal,
         "ranks of this host cannot share {} bytes of memory in /dev/shm ({}): make room there (a container: "
         "--shm-size=1g, and all its ranks in one), or set NOTELLM_SHARED_MEMORY=0, which is slower",
         bytes, std::strerror(error));
  };
  const int file = shm_open(name.c_str(), create ? O_CREAT | O_EXCL | O_RDWR : O_RDWR, 0600);
  if (file < 0) refuse(errno);
  SharedMemory memory;
  memory.name_ = name;
  memory.named_ = create;
  // Taken now: a page that is not there would be a SIGBUS later.
  const int error = create ? posix_fallocate(file, 0, bytes) : 0;
  void* const data = error ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int map_error = error ? error : errno;
  close(file);
  if (data == MAP_FAILED) refuse(map_error);
  memory.data_ = static_cast<char*>(data);
  memory.bytes_ = bytes;
  return memory;
}

SharedMemory SharedMemory::create(int64_t bytes) {
  static std::atomic<int> count = 0;
  return map(fmt::format("/notellm.{}.{}", getpid(), count++), bytes, true);
}

SharedMemory SharedMemory::open(const std::string& name, int64_t bytes) { return map(name, bytes, false); }

void SharedMemory::remove_name() {
  if (named_) shm_unlink(name_.c_str());
  named_ = false;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept { *this = std::move(other); }

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(name_, other.name_);
  std::swap(named_, other.named_);
  return *this;
}

SharedMemory::~SharedMemory() {
  remove_name();
  if (data_) munmap(data_, bytes_);
}

}  // namespace notellm

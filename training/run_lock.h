// RUN/lock: one training at a time writes to a run's folder.
#pragma once

#include <filesystem>

namespace notellm {

// Held for as long as the object lives; the system takes it from a process that dies. The file stays, but where the
// folder has nothing else, both go.
class RunLock {
 public:
  // Makes the folder. Another training that has the lock is waited for, as one that was killed may need a moment to go.
  // Throws Error(usage): it still has it after that; Error(io): the folder cannot be written. Where the file system has
  // no locks, there is a warning instead.
  explicit RunLock(const std::filesystem::path& run, double patience_seconds = 60);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::filesystem::path file_;
  int descriptor_;
};

}  // namespace notellm

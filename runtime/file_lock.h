// A file that one process at a time holds locked: who writes to a folder.
#pragma once

#include <filesystem>
#include <string>

namespace notellm {

// Held for as long as the object lives; the system takes it from a process that dies. Then the file goes, and the
// folder of the file where this made it and nothing else is in it.
class FileLock {
 public:
  // Makes the file and its folder. Another process that has the lock is waited for, as one that was killed may need a
  // moment to go. Throws Error(usage), saying `busy` and which `key` of the configuration chooses another folder: it
  // still has it after that; Error(io): the file cannot be made. Where the file system has no locks, there is a warning
  // instead.
  FileLock(const std::filesystem::path& file, const std::string& busy, const char* key, double patience_seconds);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  bool waited() const { return waited_; }  // another process had it in the meantime

 private:
  bool try_lock();
  bool is_still_the_file() const;

  std::filesystem::path file_;
  int descriptor_ = -1;
  bool made_folder_, waited_ = false;
};

}  // namespace notellm

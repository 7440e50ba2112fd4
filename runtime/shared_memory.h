// Memory that processes of one host share.
#pragma once

#include <cstdint>
#include <string>

namespace notellm {

class SharedMemory {
 public:
  SharedMemory() = default;  // none
  // New memory, all zero, under a name of its own, by which the others open it. Throws Error(internal): no room in
  // /dev/shm, or none at all.
  static SharedMemory create(int64_t bytes);
  static SharedMemory open(const std::string& name, int64_t bytes);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  char* data() const { return data_; }
  const std::string& name() const { return name_; }
  // Once all have opened it: nothing is left behind, however the processes end.
  void remove_name();

 private:
  static SharedMemory map(const std::string& name, int64_t bytes, bool create);

  char* data_ = nullptr;
  int64_t bytes_ = 0;
  std::string name_;
  bool named_ = false;  // whether the name is this one's to remove
};

}  // namespace notellm

// Errors: one exception type whose kind is the program's exit code, and one check macro.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace notellm {

// What went wrong, as the exit code of the program (docs/failure.md).
enum class ErrorKind : int {
  internal = 1,    // a broken precondition, a defect of the program; or a machine without what it needs (memory, MPI)
  usage = 2,       // command line or configuration
  data = 3,        // notes, clicks, shards, tokenizer
  io = 4,          // a file that cannot be read or written: missing, no permission, disk full
  checkpoint = 5,  // a checkpoint that is damaged or belongs to another model
  peer = 6,        // ranks that disagree, or a collective that does not end
  diverged = 7,    // training: too many steps in a row with NaN or Inf
  device = 8,      // a GPU that is missing, too old, out of memory or failed; CUDA not built
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Throws Error with a formatted message, which says what was found (file, line or key) and what to do.
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace notellm

// A precondition of a function: throws Error(internal) with the values in the message.
#define NOTELLM_CHECK(condition, ...)                                                                      \
  do {                                                                                                     \
    if (!(condition)) [[unlikely]]                                                                         \
      throw ::notellm::Error(::notellm::ErrorKind::internal,                                               \
                             fmt::format(__VA_ARGS__) + fmt::format(" [{}:{}]", __FILE_NAME__, __LINE__)); \
  } while (false)

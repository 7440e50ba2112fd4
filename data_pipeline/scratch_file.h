// A temporary file without a name: written once from front to back, then read anywhere. It loses its name as soon as it
// is open, so that nothing is left of it however the program ends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace notellm {

class ScratchFile {
 public:
  // In `folder`, which exists. Appends are gathered until they fill buffer_bytes. Throws Error(io).
  ScratchFile(const std::filesystem::path& folder, int64_t buffer_bytes);
  ScratchFile(const ScratchFile&) = delete;
  ~ScratchFile();

  // Throws Error(io): no space left.
  void append(std::span<const int32_t> words);
  // Writes what is still gathered, and frees the buffer; no append after it.
  void finish();

  // Fills `words` from word `begin` on; returns how many there were before the end of the file. Any thread; after
  // finish.
  int64_t read(int64_t begin, std::span<int32_t> words) const;
  int64_t words() const { return words_; }

 private:
  void flush();
  std::filesystem::path folder_;
  int file_ = -1;
  int64_t words_ = 0;
  size_t buffer_words_;
  std::vector<int32_t> buffer_;
};

// Reads a finished scratch file from front to back. Several may read one file at once.
class ScratchReader {
 public:
  ScratchReader(const ScratchFile& file, int64_t buffer_bytes);
  // The next `count` words, valid until the next call; empty at the end of the file.
  std::span<const int32_t> next(int64_t count);

 private:
  const ScratchFile* file_;
  std::vector<int32_t> buffer_;
  int64_t position_ = 0;         // next word of the file
  int64_t begin_ = 0, end_ = 0;  // words of the buffer that are not taken yet
};

}  // namespace notellm

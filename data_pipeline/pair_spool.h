// Pairs on their way from co-occurrence to shards: raw bytes in one file a split and rank, read one rank after the
// other.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/note_table.h"

namespace notellm {

class PairSpool {
 public:
  // Throws Error(io), as all of these: no permission, disk full.
  PairSpool(const std::filesystem::path& folder, const std::string& split, int rank);
  void append(std::span<const Pair> pairs);
  // Everything is written; no append after it.
  void finish();

 private:
  void check() const;
  std::filesystem::path path_;
  std::ofstream stream_;
};

class SpooledPairs {
 public:
  SpooledPairs(const std::filesystem::path& folder, const std::string& split, int ranks);
  // The next `most` pairs; fewer only at the end. Throws Error(io): a file that cannot be read.
  std::vector<Pair> next(int64_t most);
  // Removes the files.
  void remove();

 private:
  std::vector<std::filesystem::path> files_;
  size_t file_ = 0;  // that stream_ reads
  std::ifstream stream_;
};

}  // namespace notellm

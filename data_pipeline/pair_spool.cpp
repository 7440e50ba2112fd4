#include "data_pipeline/pair_spool.h"

#include "runtime/error.h"

namespace notellm {
namespace {

std::filesystem::path name_of(const std::filesystem::path& folder, const std::string& split, int rank) {
  return folder / fmt::format("{}-{}.spool", split, rank);
}

}  // namespace

PairSpool::PairSpool(const std::filesystem::path& folder, const std::string& split, int rank)
    : path_(name_of(folder, split, rank)), stream_(path_, std::ios::binary) {
  check();
}

void PairSpool::append(std::span<const Pair> pairs) {
  stream_.write(reinterpret_cast<const char*>(pairs.data()), static_cast<std::streamsize>(pairs.size_bytes()));
  check();
}

void PairSpool::finish() {
  stream_.close();
  check();
}

void PairSpool::check() const {
  if (!stream_)
    fail(ErrorKind::io, "{}: cannot be written: disk full or no permission; make room and run prepare again",
         path_.string());
}

SpooledPairs::SpooledPairs(const std::filesystem::path& folder, const std::string& split, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) files_.push_back(name_of(folder, split, rank));
}

std::vector<Pair> SpooledPairs::next(int64_t most) {
  std::vector<Pair> pairs(most);
  int64_t count = 0;
  while (count < most && file_ < files_.size()) {
    if (!stream_.is_open()) stream_.open(files_[file_], std::ios::binary);
    stream_.read(reinterpret_cast<char*>(&pairs[count]), (most - count) * static_cast<int64_t>(sizeof(Pair)));
    if (!stream_ && !stream_.eof()) fail(ErrorKind::io, "{}: cannot be read", files_[file_].string());
    count += stream_.gcount() / static_cast<int64_t>(sizeof(Pair));
    if (!stream_.eof()) continue;
    stream_.close();
    ++file_;
  }
  pairs.resize(count);
  return pairs;
}

void SpooledPairs::remove() {
  for (const auto& file : files_) std::filesystem::remove(file);
}

}  // namespace notellm

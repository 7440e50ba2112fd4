#include "data_pipeline/scratch_file.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace notellm {

ScratchFile::ScratchFile(const std::filesystem::path& folder, int64_t buffer_bytes)
    : folder_(folder), buffer_words_(std::max<size_t>(1024, buffer_bytes / sizeof(int32_t))) {
  std::string name = (folder / "scratch-XXXXXX").string();
  file_ = mkstemp(name.data());
  if (file_ < 0)
    fail(ErrorKind::io, "{}: no scratch file can be made there: {}", folder.string(), std::strerror(errno));
  unlink(name.c_str());
  buffer_.reserve(buffer_words_);
}

ScratchFile::~ScratchFile() { close(file_); }

void ScratchFile::append(std::span<const int32_t> words) {
  if (buffer_.size() + words.size() > buffer_words_) flush();
  buffer_.insert(buffer_.end(), words.begin(), words.end());
  words_ += static_cast<int64_t>(words.size());
}

void ScratchFile::flush() {
  const auto* data = reinterpret_cast<const char*>(buffer_.data());
  size_t left = buffer_.size() * sizeof(int32_t);
  while (left > 0) {
    const ssize_t written = write(file_, data, left);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      fail(ErrorKind::io, "{}: writing a scratch file failed after {} MB: {}; free space there or use another folder",
           folder_.string(), words_ * sizeof(int32_t) >> 20, std::strerror(errno));
    data += written;
    left -= written;
  }
  buffer_.clear();
}

void ScratchFile::finish() {
  flush();
  std::vector<int32_t>().swap(buffer_);
}

int64_t ScratchFile::read(int64_t begin, std::span<int32_t> words) const {
  auto* data = reinterpret_cast<char*>(words.data());
  const int64_t wanted = std::min<int64_t>(words.size(), words_ - begin) * static_cast<int64_t>(sizeof(int32_t));
  for (int64_t done = 0; done < wanted;) {
    const ssize_t got = pread(file_, data + done, wanted - done, begin * sizeof(int32_t) + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      fail(ErrorKind::io, "{}: reading a scratch file failed: {}", folder_.string(),
           got < 0 ? std::strerror(errno) : "it is cut short");
    done += got;
  }
  return wanted / static_cast<int64_t>(sizeof(int32_t));
}

ScratchReader::ScratchReader(const ScratchFile& file, int64_t buffer_bytes)
    : file_(&file), buffer_(std::max<int64_t>(1024, buffer_bytes / static_cast<int64_t>(sizeof(int32_t)))) {}

std::span<const int32_t> ScratchReader::next(int64_t count) {
  if (end_ - begin_ < count) {
    std::copy(buffer_.begin() + begin_, buffer_.begin() + end_, buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
    if (std::ssize(buffer_) < count) buffer_.resize(count);
    const int64_t got = file_->read(position_, std::span(buffer_).subspan(end_));
    position_ += got;
    end_ += got;
    if (end_ == 0) return {};
    NOTELLM_CHECK(end_ >= count, "{} words wanted, {} left in the scratch file", count, end_);
  }
  begin_ += count;
  return std::span(buffer_).subspan(begin_ - count, count);
}

}  // namespace notellm

// Event files that TensorBoard opens: scalars only.
//
// A file is a sequence of TFRecords, each a serialised Event message (tensorflow/core/util/event.proto): field numbers
// wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 {value = 1 {tag = 1,
// simple_value = 2}}, session_log = 7 {status = 1}. A record is: length u64, masked CRC-32C of it, the message, masked
// CRC-32C of the message (little endian).
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace notellm {

class TensorBoardWriter {
 public:
  // A new file in `folder`. Of older files there, TensorBoard shows the steps up to first_step only: a run that goes on
  // from a checkpoint does the ones after it again. Throws Error(io).
  TensorBoardWriter(const std::filesystem::path& folder, int64_t first_step);
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;
  ~TensorBoardWriter();
  // One event with some scalars, flushed. Throws Error(io).
  void add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void write_record(const std::string& message);
  std::string path_;
  std::FILE* file_;
};

}  // namespace notellm

// Text of a click log -> users with note rows, block by block. Part of data_pipeline/clicks.h, which has the contract.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data_pipeline/clicks.h"
#include "runtime/files.h"

namespace notellm {

// Consecutive lines of one user in a block; in the format `lists` one line.
struct UserClicks {
  std::string_view user;       // into the block's text
  int64_t begin = 0, end = 0;  // rows of the block
  int64_t first_line = 0;      // in the block, from 0
  int64_t first_time = 0, last_time = 0;
  bool heldout = false;
};

// Whole lines of one file, and what they parse to.
struct ClickBlock {
  int file = 0;                // in config.files
  bool first_of_file = false;  // may begin with a header line
  std::string text;

  std::vector<UserClicks> users;
  std::vector<int32_t> rows;  // -1: unknown note
  int64_t lines = 0;
  int64_t clicks = 0, outside_window = 0;
  std::string unknown;  // the first unknown note id
  std::string error;    // of line number `lines`, counted from 0: the first bad one
};

// Reads the files as blocks of about block_bytes, cut after a line's end; a longer line makes a longer block.
class ClickBlockReader {
 public:
  ClickBlockReader(const std::vector<std::string>& files, int64_t block_bytes);
  ~ClickBlockReader();
  ClickBlockReader(const ClickBlockReader&) = delete;
  // The next block's file, first_of_file and text; false after the last.
  bool next(ClickBlock& block);
  // [files] of those that are read to their end: checksum_file of what was read.
  const std::vector<std::string>& checksums() const { return checksums_; }

 private:
  void open();
  // Appends at most block_bytes of the file to text; false at its end.
  bool read_into(std::string& text);
  const std::vector<std::string>& files_;
  int64_t block_bytes_;
  int file_ = -1, descriptor_ = -1;
  bool first_of_file_ = false;
  std::string rest_;                  // the beginning of a line whose end is not read yet
  std::optional<Checksum> checksum_;  // of the file that is open
  std::vector<std::string> checksums_;
};

// Fills everything else of the block from its text. Any thread.
void parse_clicks(const ClicksConfig& config, const NoteIndex& notes, ClickBlock& block);

// The message for lines that are not sorted, with the command that sorts these files.
std::string out_of_order(const ClicksConfig& config, const std::string& what);

}  // namespace notellm

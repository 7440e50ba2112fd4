// Click logs: parsed, split into training and held-out users, filtered, and kept on disk as lists of note rows.
//
// Formats (plain text, several files are read as one, one after the other):
//   lists  user<TAB>id id id …      one list a line, in the order of time. A user with several lines is several lists.
//   csv    user,note,timestamp      sorted by user (bytes), then time (an integer, 0 or more); a header
//                                   line may come first. A user's lines are one list.
//                                   To sort, without the header: LC_ALL=C sort -t, -k1,1 -k3,3n
// A user is held out or not by hash64(user, seed) alone. "User" below means one list.
//
// Kept: from each list the notes that at most stop_share of the training users clicked, or one user; then the lists
// with min_user_notes to max_user_notes distinct notes. Training users, for that share, are those with at least one
// known note in the window.
//
// Memory: a first pass parses the files by blocks on all OpenMP threads, counts users per note and spools the lists to
// a file in `scratch`; a second pass over that file filters. Beyond tables of one entry a note, what is held at once is
// bounded by memory_bytes (and by the longest single line or, as two clicks a note at most, the longest list). Scratch
// files have no name once opened, so that nothing is left of them however the program ends.
//
// Error(data), with file and line: a line without its separators, an empty user, a timestamp that is no integer ≥ 0, a
// user or timestamp out of order (the sort command is named); more than max_unknown_share of the clicks on unknown
// notes; no training user left (what dropped most of them is named, with its key). Error(io): a file that cannot be
// read, scratch space that runs out. Error(usage): no files, to before from, a window without timestamps. Skipped and
// counted: see ClicksStats.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/notes.h"
#include "data_pipeline/scratch_file.h"
#include "runtime/config.h"

namespace notellm {

enum class ClickFormat { lists, csv };

struct ClicksConfig {
  std::vector<std::string> files;
  ClickFormat format = ClickFormat::lists;
  int64_t from = 0, to = 0;  // clicks with from <= timestamp < to; to = 0: no end
  double heldout_share = 0.1;
  int64_t seed = 1;
  double stop_share = 0.01;
  int min_user_notes = 2, max_user_notes = 100;
  double max_unknown_share = 0.5;

  void fields(Fields& f);
};

enum class Split { train = 0, heldout = 1 };

struct ClicksStats {
  int64_t lines = 0;
  int64_t clicks = 0;           // in all lines
  int64_t outside_window = 0;   // clicks before `from` or not before `to`
  int64_t unknown_clicks = 0;   // clicks on ids that are not in the notes
  int64_t users[2] = {};        // lists with a known note, by Split
  int64_t empty_users = 0;      // lists without one (in the window)
  int64_t stopped_notes = 0;    // notes over the stop share
  int64_t short_users = 0;      // lists with fewer than min_user_notes distinct notes left
  int64_t stopped_users = 0;    // of these, lists with a note over the stop share
  int64_t long_users = 0;       // lists with more than max_user_notes
  int64_t kept_users[2] = {};   // by Split
  int64_t kept_clicks[2] = {};  // distinct notes of the kept lists, summed
  int64_t pool = 0;             // notes that a kept user clicked
  double parse_seconds = 0, filter_seconds = 0;

  std::string describe() const;  // a few lines for the log
};

// One kept user. B follows A = notes[i] (some click of B after some click of A) for the notes [tail(i), i) and [i + 1,
// N).
struct UserList {
  std::span<const int32_t> notes;  // [N] distinct rows, in the order of their last click
  std::span<const int32_t> tails;  // [N], values in 0 … i + 1; empty where no note is repeated: i + 1

  int64_t size() const { return std::ssize(notes); }
  int64_t tail(int64_t i) const { return tails.empty() ? i + 1 : tails[i]; }
  // How many notes follow notes[i].
  int64_t followers(int64_t i) const { return size() - 1 - i + std::max<int64_t>(0, i - tail(i)); }
};

// The kept lists on disk, and what is known per note.
class ClickLists {
 public:
  const ClicksStats& stats() const { return stats_; }
  int64_t notes() const { return static_cast<int64_t>(training_users_.size()); }
  // [notes] kept training users that clicked the note.
  std::span<const int32_t> training_users() const { return training_users_; }
  // [notes] 1 where a kept user, of either split, clicked the note: the pool of evaluation.
  std::span<const uint8_t> in_pool() const { return in_pool_; }
  // [config.files] checksum_file of what was read.
  const std::vector<std::string>& checksums() const { return checksums_; }

  // Reads the lists of one split in the order of the log. Several may run at once.
  class Scanner {
   public:
    Scanner(const ClickLists& lists, Split split, int64_t buffer_bytes);
    // False after the last; otherwise `list` is valid until the next call.
    bool next(UserList& list);

   private:
    ScratchReader reader_;
  };

 private:
  friend class ClickFilter;
  friend ClickLists read_clicks(const ClicksConfig&, const NoteIndex&, const std::filesystem::path&, int64_t, bool);
  std::shared_ptr<ScratchFile> files_[2];  // by Split
  std::vector<int32_t> training_users_;
  std::vector<uint8_t> in_pool_;
  std::vector<std::string> checksums_;
  ClicksStats stats_;
};

// `scratch` is a folder that exists; each rank parses the whole log for itself. `show_progress`: on one rank.
ClickLists read_clicks(const ClicksConfig& config, const NoteIndex& notes, const std::filesystem::path& scratch,
                       int64_t memory_bytes, bool show_progress = false);

}  // namespace notellm

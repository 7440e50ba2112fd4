// The notes: a streaming reader of notes.jsonl, and the table note id -> dense row.
//
// One JSON object a line: {"id", "title", "content", "category"?, "hashtags"?[…]}; other keys may be named by the title
// template. Blank lines are ignored.
//
// Error(data), with file and line: malformed JSON, a number beyond double, invalid UTF-8, a line that is no object, a
// missing field or one of another type, an id that an earlier line has (both lines are named), a file without a note.
// Error(io): a file that cannot be read. Error(usage): a title template with an unclosed or empty brace. Skipped and
// counted: a note without text, that is with nothing but white space in its content and in every field that the title
// template names. It gets no row, and clicks on it count as clicks on an unknown note.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/files.h"

namespace notellm {

struct Note {
  std::string id;  // the JSON string; an integer as its decimal digits
  std::string title;
  std::string content;
  std::string category;               // empty: none
  std::vector<std::string> hashtags;  // as in the file, empty ones left out
};

// Note id -> row, rows 0, 1, 2, … in the order of add. About 30 bytes a note and the id itself.
class NoteIndex {
 public:
  // The row of a new id, or -1 when the id is known already (nothing changes then).
  int32_t add(std::string_view id);
  // The row, or -1.
  int32_t find(std::string_view id) const { return find_hashed(id, hash(id)); }
  // rows[i] = find(ids[i]); several times as fast as single calls, because the memory accesses overlap.
  void find(const std::string_view* ids, int64_t count, int32_t* rows) const;
  std::string_view id(int32_t row) const {
    return std::string_view(text_).substr(begins_[row], begins_[row + 1] - begins_[row]);
  }
  int64_t size() const { return static_cast<int64_t>(begins_.size()) - 1; }

 private:
  // One slot of the hash table (open addressing, linear probing, at most half full).
  struct Slot {
    uint32_t tag = 0;  // upper half of the hash
    int32_t row = -1;  // -1: free
  };
  static uint64_t hash(std::string_view id);
  int32_t find_hashed(std::string_view id, uint64_t hash) const;
  void grow();

  std::string text_;                 // all ids, one after the other
  std::vector<uint64_t> begins_{0};  // [notes + 1] where each id begins in text_
  std::vector<Slot> slots_{2};       // a power of two
};

struct NotesStats {
  int64_t lines = 0;  // read, blank ones included
  int64_t notes = 0;  // that got a row
  int64_t empty = 0;  // skipped: no text
};

class NoteReader {
 public:
  // `title_template` makes Note::title from the line's text fields: "{name}: {title}".
  NoteReader(const std::filesystem::path& file, const std::string& title_template = "{title}");

  // The notes of the next `lines` lines (blank ones and empty notes left out), in the order of the file: batch[i] has
  // row (notes before this call) + i. Lines are parsed by all OpenMP threads; what is thrown is the first bad line's
  // error. Returns false, with an empty batch, after the last line.
  bool read(std::vector<Note>& batch, int64_t lines = 4096);

  // Of the notes read so far; complete once read has returned false.
  const NoteIndex& index() const { return index_; }
  NoteIndex take_index() { return std::move(index_); }  // the reader is done with after that
  const NotesStats& stats() const { return stats_; }
  // Of the bytes read so far, as checksum_file.
  std::string checksum() const { return checksum_.text(); }

 private:
  // A piece of the title template: text to copy, then the field whose value follows (none when empty).
  struct Piece {
    std::string text, field;
  };
  // What one line holds: a note, nothing (blank or without text), or an error.
  struct Parsed {
    Note note;
    bool blank = false, empty = false;
    std::string error;
  };
  bool read_line(std::string& text);
  Parsed parse(const std::string& line) const;
  void add(Note&& note, int64_t line, std::vector<Note>& batch);

  std::filesystem::path file_;
  std::ifstream stream_;
  Checksum checksum_;
  std::vector<Piece> title_;
  std::string title_asks_;  // for a field that is not there: "…, which data.title (…) asks for"
  NoteIndex index_;
  std::vector<int64_t> line_of_;  // [notes]
  NotesStats stats_;
};

}  // namespace notellm

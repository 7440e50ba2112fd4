#include "data_pipeline/notes.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/parallel_for.h"

namespace notellm {
namespace {

using Json = nlohmann::json;

// What is wrong with one line; the reader adds file and line number.
struct BadLine {
  std::string what;
};

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

// `whose`: who asks for the field, to be said where it is not there.
const std::string& text_field(const Json& line, const std::string& key, std::string_view whose = "") {
  const auto field = line.find(key);
  if (field == line.end()) throw BadLine{fmt::format("no field \"{}\"{}", key, whose)};
  if (!field->is_string()) throw BadLine{fmt::format("\"{}\" must be text, not {}{}", key, field->type_name(), whose)};
  return field->get_ref<const std::string&>();
}

std::string id_field(const Json& line) {
  const auto field = line.find("id");
  if (field == line.end()) throw BadLine{"no field \"id\""};
  if (field->is_number_integer()) return field->dump();
  if (!field->is_string()) throw BadLine{fmt::format("\"id\" must be text or an integer, not {}", field->type_name())};
  if (field->get_ref<const std::string&>().empty()) throw BadLine{"\"id\" is empty"};
  return field->get<std::string>();
}

std::vector<std::string> hashtags_field(const Json& line) {
  std::vector<std::string> hashtags;
  const auto field = line.find("hashtags");
  if (field == line.end() || field->is_null()) return hashtags;
  if (!field->is_array()) throw BadLine{fmt::format("\"hashtags\" must be a list, not {}", field->type_name())};
  for (const Json& hashtag : *field) {
    if (!hashtag.is_string()) throw BadLine{fmt::format("\"hashtags\" holds {}, not text", hashtag.type_name())};
    if (!hashtag.get_ref<const std::string&>().empty()) hashtags.push_back(hashtag.get<std::string>());
  }
  return hashtags;
}

// The library's message without its prefix, "[json.exception.…] ".
std::string own_words(const Json::exception& error) {
  const std::string what = error.what();
  return what.substr(what.find("] ") + 2);
}

Json parse_json(const std::string& line) {
  try {
    Json parsed = Json::parse(line);
    if (!parsed.is_object()) throw BadLine{fmt::format("an object {{…}} is expected, not {}", parsed.type_name())};
    return parsed;
  } catch (const Json::parse_error& error) {
    const std::string what = own_words(error);
    // The library's message repeats the bytes it read, which a terminal could not show.
    if (what.find("UTF-8") != std::string::npos)
      throw BadLine{fmt::format("invalid UTF-8 at byte {} of the line; convert the file to UTF-8", error.byte)};
    throw BadLine{"malformed JSON: " + what};
  } catch (const Json::exception& error) {  // a number that no double can hold
    throw BadLine{own_words(error)};
  }
}

}  // namespace

uint64_t NoteIndex::hash(std::string_view id) { return XXH3_64bits(id.data(), id.size()); }

int32_t NoteIndex::find_hashed(std::string_view id, uint64_t hash) const {
  const uint64_t mask = slots_.size() - 1;
  for (uint64_t slot = hash & mask;; slot = (slot + 1) & mask) {
    if (slots_[slot].row < 0) return -1;
    if (slots_[slot].tag == hash >> 32 && this->id(slots_[slot].row) == id) return slots_[slot].row;
  }
}

void NoteIndex::find(const std::string_view* ids, int64_t count, int32_t* rows) const {
  constexpr int64_t group = 32;
  std::array<uint64_t, group> hashes;
  const uint64_t mask = slots_.size() - 1;
  for (int64_t begin = 0; begin < count; begin += group) {
    const int64_t n = std::min(group, count - begin);
    for (int64_t i = 0; i < n; ++i) {
      hashes[i] = hash(ids[begin + i]);
      __builtin_prefetch(&slots_[hashes[i] & mask]);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t row = slots_[hashes[i] & mask].row;
      if (row >= 0) __builtin_prefetch(&begins_[row]);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t row = slots_[hashes[i] & mask].row;
      if (row >= 0) __builtin_prefetch(text_.data() + begins_[row]);
    }
    for (int64_t i = 0; i < n; ++i) rows[begin + i] = find_hashed(ids[begin + i], hashes[i]);
  }
}

int32_t NoteIndex::add(std::string_view id) {
  const uint64_t key = hash(id);
  if (find_hashed(id, key) >= 0) return -1;
  NOTELLM_CHECK(size() < std::numeric_limits<int32_t>::max(), "more than {} notes", size());
  if (2 * (size() + 1) > static_cast<int64_t>(slots_.size())) grow();
  const auto row = static_cast<int32_t>(size());
  text_ += id;
  begins_.push_back(text_.size());
  const uint64_t mask = slots_.size() - 1;
  uint64_t slot = key & mask;
  while (slots_[slot].row >= 0) slot = (slot + 1) & mask;
  slots_[slot] = {static_cast<uint32_t>(key >> 32), row};
  return row;
}

void NoteIndex::grow() {
  std::vector<Slot> slots(2 * slots_.size());
  slots_.swap(slots);
  const uint64_t mask = slots_.size() - 1;
  for (int32_t row = 0; row < size(); ++row) {
    const uint64_t key = hash(id(row));
    uint64_t slot = key & mask;
    while (slots_[slot].row >= 0) slot = (slot + 1) & mask;
    slots_[slot] = {static_cast<uint32_t>(key >> 32), row};
  }
}

NoteReader::NoteReader(const std::filesystem::path& file, const std::string& title_template)
    : file_(file), title_asks_(fmt::format(", which data.title (\"{}\") asks for", title_template)) {
  size_t begin = 0;
  while (begin < title_template.size()) {
    const size_t open = std::min(title_template.find('{', begin), title_template.size());
    Piece piece{title_template.substr(begin, open - begin), ""};
    begin = open;
    if (open < title_template.size()) {
      const size_t close = title_template.find('}', open);
      if (close == std::string::npos || close == open + 1)
        fail(ErrorKind::usage, "data.title \"{}\": write each field as {{name}}, as in \"{{name}}: {{title}}\"",
             title_template);
      piece.field = title_template.substr(open + 1, close - open - 1);
      begin = close + 1;
    }
    title_.push_back(std::move(piece));
  }
  errno = 0;
  stream_.open(file);
  if (!stream_ || std::filesystem::is_directory(file))
    fail(ErrorKind::io, "{}: cannot be read: {}", file.string(), std::strerror(errno ? errno : EISDIR));
}

bool NoteReader::read_line(std::string& text) {
  if (!std::getline(stream_, text)) return false;
  checksum_.add(text);
  if (!stream_.eof()) checksum_.add("\n");
  return true;
}

NoteReader::Parsed NoteReader::parse(const std::string& text) const {
  Parsed parsed;
  parsed.blank = is_blank(text);
  if (parsed.blank) return parsed;
  try {
    const Json line = parse_json(text);
    Note& note = parsed.note;
    note.id = id_field(line);
    note.content = text_field(line, "content");
    parsed.empty = is_blank(note.content);
    for (const Piece& piece : title_) {
      note.title += piece.text;
      if (piece.field.empty()) continue;
      const std::string& value = text_field(line, piece.field, title_asks_);
      parsed.empty = parsed.empty && is_blank(value);
      note.title += value;
    }
    if (const auto category = line.find("category"); category != line.end() && !category->is_null())
      note.category = text_field(line, "category");
    note.hashtags = hashtags_field(line);
  } catch (const BadLine& bad) {
    parsed.error = bad.what;
  }
  return parsed;
}

void NoteReader::add(Note&& note, int64_t line, std::vector<Note>& batch) {
  if (index_.add(note.id) < 0)
    fail(ErrorKind::data, "{}:{}: id \"{}\" is also that of line {}; remove one of the two", file_.string(), line,
         note.id, line_of_[index_.find(note.id)]);
  line_of_.push_back(line);
  batch.push_back(std::move(note));
}

bool NoteReader::read(std::vector<Note>& batch, int64_t lines) {
  batch.clear();
  // A batch of blank and empty lines only must not look like the end.
  while (batch.empty()) {
    std::vector<std::string> texts;
    for (std::string text; static_cast<int64_t>(texts.size()) < lines && read_line(text);)
      texts.push_back(std::move(text));
    if (stream_.bad()) fail(ErrorKind::io, "{}: reading failed after line {}", file_.string(), stats_.lines);
    if (texts.empty()) break;
    const auto count = static_cast<int64_t>(texts.size());
    std::vector<Parsed> parsed(count);
    parallel_for(count, [&](int64_t i) { parsed[i] = parse(texts[i]); });
    for (Parsed& line : parsed) {
      ++stats_.lines;
      if (!line.error.empty()) fail(ErrorKind::data, "{}:{}: {}", file_.string(), stats_.lines, line.error);
      if (line.blank) continue;
      if (line.empty)
        ++stats_.empty;
      else
        add(std::move(line.note), stats_.lines, batch);
    }
  }
  stats_.notes = index_.size();
  if (batch.empty() && stats_.notes == 0)
    fail(ErrorKind::data, "{}: holds no note with text ({} lines, {} notes without text)", file_.string(), stats_.lines,
         stats_.empty);
  return !batch.empty();
}

}  // namespace notellm

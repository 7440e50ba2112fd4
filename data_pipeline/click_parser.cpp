#include "data_pipeline/click_parser.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>

#include "runtime/error.h"

namespace notellm {
namespace {

bool is_heldout(const ClicksConfig& config, std::string_view user) {
  const uint64_t hash = hash64(user, static_cast<uint64_t>(config.seed));
  return static_cast<double>(hash >> 11) * 0x1p-53 < config.heldout_share;
}

// Whether a line with this third field is a header.
bool names_field(std::string_view field) {
  return !field.empty() && (std::isalpha(static_cast<unsigned char>(field[0])) || field[0] == '"');
}

bool has_header(const std::string& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  const size_t first = line.find(','), second = line.find(',', first + 1);
  return first != line.npos && second != line.npos && names_field(std::string_view(line).substr(second + 1));
}

// What is wrong with one line; the caller adds file and line number.
struct BadLine {
  std::string what;
};

// One pass over the lines of a block.
class BlockParser {
 public:
  BlockParser(const ClicksConfig& config, ClickBlock& block) : config_(config), block_(block) {}

  // Gives the note ids of block.rows, in order.
  std::vector<std::string_view> run() {
    const std::string_view text = block_.text;
    // Half a dozen bytes an id is few: seldom grown again.
    ids_.reserve(text.size() / (config_.format == ClickFormat::lists ? 6 : 12));
    try {
      for (size_t begin = 0; begin < text.size(); ++block_.lines) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        std::string_view line = text.substr(begin, end - begin);
        if (line.ends_with('\r')) line.remove_suffix(1);
        begin = end + 1;
        if (line.empty()) continue;
        if (config_.format == ClickFormat::lists)
          list(line);
        else
          click(line);
      }
    } catch (const BadLine& bad) {
      block_.error = bad.what;
    }
    return std::move(ids_);
  }

 private:
  void list(std::string_view line) {
    const size_t tab = line.find('\t');
    if (tab == std::string_view::npos)
      throw BadLine{fmt::format("no tab after the user; expected: user<TAB>id id id …{}",
                                line.find(',') == line.npos ? "" : "; to read CSV, set data.clicks.format to csv")};
    if (tab == 0) throw BadLine{"the user is empty; expected: user<TAB>id id id …"};
    UserClicks user = begin_user(line.substr(0, tab));
    const char* p = line.data() + tab;
    const char* const end = line.data() + line.size();
    while (p < end) {
      while (p < end && static_cast<unsigned char>(*p) <= ' ') ++p;
      const char* const begin = p;
      while (p<end&& static_cast<unsigned char>(*p)> ' ') ++p;
      if (p > begin) ids_.emplace_back(begin, p - begin);
    }
    user.end = static_cast<int64_t>(ids_.size());
    block_.clicks += user.end - user.begin;
    block_.users.push_back(user);
  }

  void click(std::string_view line) {
    const size_t first = line.find(',');
    const size_t second = first == std::string_view::npos ? first : line.find(',', first + 1);
    if (second == std::string_view::npos || line.find(',', second + 1) != std::string_view::npos)
      throw BadLine{"expected three fields: user,note,timestamp"};
    const std::string_view user = line.substr(0, first), note = line.substr(first + 1, second - first - 1);
    const std::string_view time_text = line.substr(second + 1);
    if (block_.first_of_file && block_.lines == 0 && names_field(time_text)) return;
    if (line.find('"') != std::string_view::npos)
      throw BadLine{"quoted fields are not read; write them without quotes"};
    if (user.empty() || note.empty()) throw BadLine{fmt::format("the {} is empty", user.empty() ? "user" : "note")};
    int64_t time = -1;
    const auto parsed = std::from_chars(time_text.data(), time_text.data() + time_text.size(), time);
    if (parsed.ec != std::errc() || parsed.ptr != time_text.data() + time_text.size() || time < 0)
      throw BadLine{fmt::format("the timestamp must be an integer, 0 or more, not \"{}\"", time_text)};
    add_click(user, note, time);
  }

  void add_click(std::string_view user, std::string_view note, int64_t time) {
    if (block_.users.empty() || block_.users.back().user != user) {
      if (!block_.users.empty() && user < block_.users.back().user)
        throw BadLine{
            out_of_order(config_, fmt::format("user \"{}\" after user \"{}\"", user, block_.users.back().user))};
      block_.users.push_back(begin_user(user));
      block_.users.back().first_time = time;
    } else if (time < block_.users.back().last_time) {
      throw BadLine{out_of_order(
          config_, fmt::format("user \"{}\": timestamp {} after {}", user, time, block_.users.back().last_time))};
    }
    block_.users.back().last_time = time;
    ++block_.clicks;
    if (time >= config_.from && (config_.to == 0 || time < config_.to))
      ids_.push_back(note);
    else
      ++block_.outside_window;
    block_.users.back().end = static_cast<int64_t>(ids_.size());
  }

  UserClicks begin_user(std::string_view user) const {
    const auto begin = static_cast<int64_t>(ids_.size());
    return {user, begin, begin, block_.lines, 0, 0, is_heldout(config_, user)};
  }

  const ClicksConfig& config_;
  ClickBlock& block_;
  std::vector<std::string_view> ids_;
};

}  // namespace

std::string out_of_order(const ClicksConfig& config, const std::string& what) {
  std::string files;
  for (const std::string& file : config.files) files += " " + file;
  constexpr const char* sort = "LC_ALL=C sort -t, -k1,1 -k3,3n";
  std::string command = sort + files;
  if (std::ranges::any_of(config.files, has_header))  // which must not be sorted into the lines
    command = fmt::format(R"(awk -F, 'FNR > 1 || $3 !~ /^["A-Za-z]/'{} | {})", files, sort);
  return fmt::format("{}; a CSV log must be sorted by user, then time: {}", what, command);
}

void parse_clicks(const ClicksConfig& config, const NoteIndex& notes, ClickBlock& block) {
  block.users.clear();
  block.error.clear();
  block.lines = block.clicks = block.outside_window = 0;
  const std::vector<std::string_view> ids = BlockParser(config, block).run();
  block.rows.resize(ids.size());
  notes.find(ids.data(), static_cast<int64_t>(ids.size()), block.rows.data());
  const auto unknown = std::find(block.rows.begin(), block.rows.end(), -1) - block.rows.begin();
  block.unknown = unknown < std::ssize(ids) ? ids[unknown] : "";
}

ClickBlockReader::ClickBlockReader(const std::vector<std::string>& files, int64_t block_bytes)
    : files_(files), block_bytes_(block_bytes) {}

ClickBlockReader::~ClickBlockReader() {
  if (descriptor_ >= 0) close(descriptor_);
}

void ClickBlockReader::open() {
  const std::string& file = files_[++file_];
  descriptor_ = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) fail(ErrorKind::io, "{}: cannot be read: {}", file, std::strerror(errno));
  first_of_file_ = true;
  checksum_.emplace();
}

bool ClickBlockReader::read_into(std::string& text) {
  const size_t before = text.size();
  text.resize(before + block_bytes_);
  ssize_t got = 0;
  do {
    got = ::read(descriptor_, text.data() + before, block_bytes_);
  } while (got < 0 && errno == EINTR);
  if (got < 0) fail(ErrorKind::io, "{}: cannot be read: {}", files_[file_], std::strerror(errno));
  text.resize(before + got);
  checksum_->add(std::string_view(text).substr(before));
  return got > 0;
}

bool ClickBlockReader::next(ClickBlock& block) {
  for (;;) {
    if (descriptor_ < 0) {
      if (file_ + 1 == static_cast<int>(files_.size())) return false;
      open();
    }
    block.text.swap(rest_);
    rest_.clear();
    block.file = file_;
    block.first_of_file = first_of_file_;
    size_t end = std::string::npos;
    bool more = true;
    while (end == std::string::npos && more) {
      const size_t searched = block.text.size();
      more = read_into(block.text);
      end = std::string_view(block.text).substr(searched).rfind('\n');
      if (end != std::string::npos) end += searched + 1;
    }
    if (!more) {
      close(descriptor_);
      descriptor_ = -1;
      checksums_.push_back(checksum_->text());
      end = block.text.size();
    }
    rest_.assign(block.text, end);
    block.text.resize(end);
    first_of_file_ = false;
    if (!block.text.empty()) return true;
  }
}

}  // namespace notellm

#include "data_pipeline/clicks.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "data_pipeline/click_parser.h"
#include "runtime/error.h"
#include "runtime/progress.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

// A list in the spool: {clicks, flags}, then the clicks' rows in order of time.
constexpr int32_t heldout_flag = 1, repeats_flag = 2;

// First pass: parses the files and spools each list, reduced to the first and the last click of each note, which is all
// that pairs depend on.
class ClickSpooler {
 public:
  ClickSpooler(const ClicksConfig& config, const NoteIndex& notes, ScratchFile& spool, ClicksStats& stats)
      : config_(config), notes_(notes), spool_(spool), stats_(stats), seen_(notes.size()), users_of_(notes.size()) {}

  // Returns the files' checksums.
  std::vector<std::string> run(int64_t memory_bytes, bool show_progress) {
    // Four blocks a thread even out their lengths; a block of the shortest possible ids parses to 24 times its text.
    std::vector<ClickBlock> blocks(4 * omp_get_max_threads());
    const int64_t block_bytes = std::clamp<int64_t>(memory_bytes / (48 * std::ssize(blocks)), 1 << 10, 1 << 20);
    ClickBlockReader reader(config_.files, block_bytes);
    Progress progress("parse the click log", 0, show_progress);
    for (bool more = true; more;) {
      int count = 0;
      while (count < std::ssize(blocks) && (more = reader.next(blocks[count]))) ++count;
#pragma omp parallel for schedule(dynamic, 1)
      for (int i = 0; i < count; ++i) parse_clicks(config_, notes_, blocks[i]);
      for (int i = 0; i < count; ++i) {
        add(blocks[i]);
        progress.advance(blocks[i].clicks);
      }
    }
    finish_list();
    spool_.finish();
    check_unknown();
    return reader.checksums();
  }

  // [notes] training users that clicked the note, before any filter.
  std::vector<int32_t> take_users_of() { return std::move(users_of_); }

 private:
  void add(const ClickBlock& block) {
    if (block.file != file_) lines_before_ = 0;
    file_ = block.file;
    for (const UserClicks& user : block.users) {
      if (!continues(user, block)) {
        finish_list();
        list_open_ = true;
        heldout_ = user.heldout;
      }
      for (int64_t i = user.begin; i < user.end; ++i) {
        if (block.rows[i] < 0)
          ++stats_.unknown_clicks;
        else
          list_.push_back(block.rows[i]);
      }
      if (std::ssize(list_) > std::max<int64_t>(1 << 20, 4 * notes_.size())) reduce(list_);
    }
    if (!block.error.empty()) fail_at(block.lines, block.error);
    if (config_.format == ClickFormat::csv && !block.users.empty()) {
      last_user_ = block.users.back().user;
      last_time_ = block.users.back().last_time;
    }
    if (unknown_.empty()) unknown_ = block.unknown;
    lines_before_ += block.lines;
    stats_.lines += block.lines;
    stats_.clicks += block.clicks;
    stats_.outside_window += block.outside_window;
  }

  [[noreturn]] void fail_at(int64_t line_of_block, const std::string& what) const {
    fail(ErrorKind::data, "{}:{}: {}", config_.files[file_], lines_before_ + line_of_block + 1, what);
  }

  // Whether this is the list that the block before ended with (CSV only). Throws where the blocks are out of order.
  bool continues(const UserClicks& user, const ClickBlock& block) const {
    if (&user != block.users.data() || !last_user_) return false;
    if (user.user < *last_user_)
      fail_at(user.first_line,
              out_of_order(config_, fmt::format("user \"{}\" after user \"{}\"", user.user, *last_user_)));
    if (user.user != *last_user_) return false;
    if (user.first_time < last_time_)
      fail_at(user.first_line, out_of_order(config_, fmt::format("user \"{}\": timestamp {} after {}", user.user,
                                                                 user.first_time, last_time_)));
    return true;
  }

  void finish_list() {
    if (!list_open_) return;
    list_open_ = false;
    if (list_.empty()) {
      ++stats_.empty_users;
      return;
    }
    bool repeats = false;
    for (int32_t row : list_) {
      repeats |= seen_[row];
      users_of_[row] += !heldout_ && !seen_[row];
      seen_[row] = 1;
    }
    for (int32_t row : list_) seen_[row] = 0;
    if (repeats) reduce(list_);
    NOTELLM_CHECK(std::ssize(list_) < std::numeric_limits<int32_t>::max(), "a list of {} clicks", list_.size());
    const std::array<int32_t, 2> header = {static_cast<int32_t>(list_.size()),
                                           heldout_ * heldout_flag + repeats * repeats_flag};
    spool_.append(header);
    spool_.append(list_);
    ++stats_.users[heldout_];
    list_.clear();
  }

  // Leaves the first and the last click of each note.
  void reduce(std::vector<int32_t>& list) {
    std::vector<uint8_t> keep(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      keep[i] = !seen_[list[i]];
      seen_[list[i]] = 1;
    }
    for (size_t i = list.size(); i-- > 0;) {
      keep[i] |= seen_[list[i]];
      seen_[list[i]] = 0;
    }
    size_t kept = 0;
    for (size_t i = 0; i < list.size(); ++i)
      if (keep[i]) list[kept++] = list[i];
    list.resize(kept);
  }

  void check_unknown() const {
    const int64_t clicks = stats_.clicks - stats_.outside_window;
    if (static_cast<double>(stats_.unknown_clicks) > config_.max_unknown_share * static_cast<double>(clicks))
      fail(ErrorKind::data,
           "{}: {} of {} clicks are on notes that notes.jsonl does not have (the first is \"{}\"), more than "
           "data.clicks.max_unknown_share {}; check that both files use the same ids, or raise it",
           config_.files[0], stats_.unknown_clicks, clicks, unknown_, config_.max_unknown_share);
  }

  const ClicksConfig& config_;
  const NoteIndex& notes_;
  ScratchFile& spool_;
  ClicksStats& stats_;
  std::vector<uint8_t> seen_;      // [notes] all 0 between uses
  std::vector<int32_t> users_of_;  // [notes]
  std::vector<int32_t> list_;      // the list that is being gathered
  bool list_open_ = false, heldout_ = false;
  std::optional<std::string> last_user_;  // of the block before
  int64_t last_time_ = 0, lines_before_ = 0;
  int file_ = -1;
  std::string unknown_;  // the first unknown note id
};

}  // namespace

// Second pass: applies the stop share and the bounds of length.
class ClickFilter {
 public:
  ClickFilter(const ClicksConfig& config, const std::vector<int32_t>& users_of, ClickLists& lists)
      : config_(config), lists_(lists), stats_(lists.stats_), stopped_(users_of.size()), index_(users_of.size(), -1) {
    lists.training_users_.resize(users_of.size());
    lists.in_pool_.resize(users_of.size());
    // A note of one user is too many users' in no log, however short.
    const double limit = std::max(1., config.stop_share * static_cast<double>(stats_.users[0]));
    for (size_t row = 0; row < users_of.size(); ++row) stopped_[row] = users_of[row] > limit;
    stats_.stopped_notes = std::count(stopped_.begin(), stopped_.end(), 1);
  }

  void run(const ScratchFile& spool, const std::filesystem::path& scratch, int64_t buffer_bytes) {
    for (auto& file : lists_.files_) file = std::make_shared<ScratchFile>(scratch, buffer_bytes);
    ScratchReader reader(spool, buffer_bytes);
    std::vector<int32_t> list;
    for (std::span<const int32_t> header; !(header = reader.next(2)).empty();) {
      const int32_t clicks = header[0], flags = header[1];
      list.clear();
      for (int32_t row : reader.next(clicks))
        if (!stopped_[row]) list.push_back(row);
      const int64_t short_before = stats_.short_users;
      const bool stopped = std::ssize(list) < clicks;
      keep(list, flags & heldout_flag, flags & repeats_flag);
      if (stopped) stats_.stopped_users += stats_.short_users - short_before;
    }
    for (auto& file : lists_.files_) file->finish();
    stats_.pool = std::count(lists_.in_pool_.begin(), lists_.in_pool_.end(), 1);
    if (stats_.kept_users[0] == 0)
      fail(ErrorKind::data, "{}: no training user is left: {} ({})", config_.files[0], cause(), stats_.describe());
  }

 private:
  // What dropped most of the training users, and what to do about it.
  std::string cause() const {
    const ClicksStats& s = stats_;
    if (s.clicks == 0) return "there is no click in it; check data.clicks.files";
    if (s.users[0] + s.users[1] == 0)
      return s.outside_window >= s.unknown_clicks
                 ? "all clicks are outside the time window; check data.clicks.from and data.clicks.to"
                 : "all clicks are on notes that data.notes does not have; check that both files use the same ids";
    if (s.users[0] == 0)
      return fmt::format("all users are held out; lower data.clicks.heldout_share ({})", config_.heldout_share);
    if (s.long_users > s.short_users)
      return fmt::format("most have too many notes; raise data.clicks.max_user_notes ({})", config_.max_user_notes);
    if (2 * s.stopped_users >= s.short_users)
      return fmt::format("most have too few notes without those over data.clicks.stop_share ({}); raise it",
                         config_.stop_share);
    if (config_.min_user_notes > 2)
      return fmt::format("most have too few different notes; lower data.clicks.min_user_notes ({})",
                         config_.min_user_notes);
    return "most have one note only, and pairs need two; check that all clicks of a user are in one list";
  }

  void keep(std::vector<int32_t>& list, bool heldout, bool repeats) {
    tails_.clear();
    if (repeats) order_by_last_click(list);
    const int64_t notes = std::ssize(list);
    if (notes < config_.min_user_notes) {
      ++stats_.short_users;
      return;
    }
    if (notes > config_.max_user_notes) {
      ++stats_.long_users;
      return;
    }
    for (int32_t row : list) {
      lists_.in_pool_[row] = 1;
      lists_.training_users_[row] += !heldout;
    }
    ++stats_.kept_users[heldout];
    stats_.kept_clicks[heldout] += notes;
    const std::array<int32_t, 2> header = {static_cast<int32_t>(notes), !tails_.empty()};
    lists_.files_[heldout]->append(header);
    lists_.files_[heldout]->append(list);
    lists_.files_[heldout]->append(tails_);
  }

  // A list in which notes repeat -> its distinct notes in the order of their last click, and their tails.
  void order_by_last_click(std::vector<int32_t>& list) {
    std::vector<int32_t> distinct;
    for (size_t i = list.size(); i-- > 0;) {
      if (index_[list[i]] >= 0) continue;
      index_[list[i]] = static_cast<int32_t>(i);  // of its last click
      distinct.push_back(list[i]);
    }
    std::reverse(distinct.begin(), distinct.end());
    // From the front: a note's tail begins after the notes whose last click is at its first click or before.
    tails_.resize(distinct.size());
    std::vector<int32_t> tail_at(list.size());
    int32_t ended = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      ended += index_[list[i]] == static_cast<int32_t>(i);
      tail_at[i] = ended;
    }
    for (size_t i = 0; i < distinct.size(); ++i) index_[distinct[i]] = static_cast<int32_t>(i);
    for (size_t i = list.size(); i-- > 0;) tails_[index_[list[i]]] = tail_at[i];  // the first click's comes last
    for (int32_t row : distinct) index_[row] = -1;
    list.swap(distinct);
  }

  const ClicksConfig& config_;
  ClickLists& lists_;
  ClicksStats& stats_;
  std::vector<uint8_t> stopped_;  // [notes]
  std::vector<int32_t> index_;    // [notes] all -1 between uses
  std::vector<int32_t> tails_;    // of the list at hand; empty where no note repeats
};

void ClicksConfig::fields(Fields& f) {
  f.add("files", "click logs, read as one", files);
  f.add("format", "lists: user<TAB>id id …; csv: user,note,timestamp, sorted by user, then time", format,
        {{"lists", ClickFormat::lists}, {"csv", ClickFormat::csv}});
  f.add("from", "csv: clicks before this timestamp are left out", from, at_least(0));
  f.add("to", "csv: clicks at this timestamp or later are left out; 0: none", to, at_least(0));
  f.add("heldout_share", "share of the users kept for the test pairs", heldout_share, between(0, 1));
  f.add("seed", "of the choice of held-out users", seed);
  f.add("stop_share", "notes that more than this share of the training users, and more than one, clicked are dropped",
        stop_share, between(0, 1));
  f.add("min_user_notes", "users with fewer different notes left are dropped", min_user_notes, at_least(2));
  f.add("max_user_notes", "users with more are dropped", max_user_notes, at_least(2));
  f.add("max_unknown_share", "more clicks than this share on unknown notes are an error", max_unknown_share,
        between(0, 1));
}

std::string ClicksStats::describe() const {
  return fmt::format(
      "{} lines, {} clicks ({} outside the time window, {} on unknown notes), {} training and {} held-out users ({} "
      "without a known note); dropped {} notes over the stop share, {} users with too few notes, {} with too many; "
      "kept {} training users with {} clicks, {} held-out users with {}; {} notes in the pool",
      format_count(lines), format_count(clicks), format_count(outside_window), format_count(unknown_clicks),
      format_count(users[0]), format_count(users[1]), format_count(empty_users), format_count(stopped_notes),
      format_count(short_users), format_count(long_users), format_count(kept_users[0]), format_count(kept_clicks[0]),
      format_count(kept_users[1]), format_count(kept_clicks[1]), format_count(pool));
}

ClickLists::Scanner::Scanner(const ClickLists& lists, Split split, int64_t buffer_bytes)
    : reader_(*lists.files_[static_cast<int>(split)], buffer_bytes) {}

bool ClickLists::Scanner::next(UserList& list) {
  const std::span<const int32_t> header = reader_.next(2);
  if (header.empty()) return false;
  const int32_t notes = header[0], tails = header[1] ? notes : 0;
  const std::span<const int32_t> words = reader_.next(notes + tails);
  list = {words.first(notes), words.subspan(notes)};
  return true;
}

ClickLists read_clicks(const ClicksConfig& config, const NoteIndex& notes, const std::filesystem::path& scratch,
                       int64_t memory_bytes, bool show_progress) {
  if (config.files.empty()) fail(ErrorKind::usage, "data.clicks.files: no click log is named");
  if (config.to != 0 && config.to <= config.from)
    fail(ErrorKind::usage, "data.clicks.to is {}, not after data.clicks.from, {}", config.to, config.from);
  if (config.format == ClickFormat::lists && (config.from != 0 || config.to != 0))
    fail(ErrorKind::usage, "data.clicks.from and data.clicks.to need timestamps; data.clicks.format is lists");
  if (config.max_user_notes < config.min_user_notes)
    fail(ErrorKind::usage, "data.clicks.max_user_notes is {}, less than data.clicks.min_user_notes, {}",
         config.max_user_notes, config.min_user_notes);
  const int64_t buffer_bytes = std::clamp<int64_t>(memory_bytes / 16, 1 << 12, 1 << 22);
  ClickLists lists;
  ScratchFile spool(scratch, buffer_bytes);
  Stopwatch watch;
  ClickSpooler spooler(config, notes, spool, lists.stats_);
  lists.checksums_ = spooler.run(memory_bytes, show_progress);
  lists.stats_.parse_seconds = watch.lap();
  ClickFilter(config, spooler.take_users_of(), lists).run(spool, scratch, buffer_bytes);
  lists.stats_.filter_seconds = watch.lap();
  return lists;
}

}  // namespace notellm

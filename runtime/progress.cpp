#include "runtime/progress.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <utility>

namespace notellm {
namespace {
constexpr double quiet_seconds = 2, terminal_interval = 0.2, log_interval = 10;

std::string per_second(int64_t done, double seconds) {
  const double rate = static_cast<double>(done) / seconds;
  return rate < 10 ? fmt::format("{:.1f}/s", rate) : format_count(std::llround(rate)) + "/s";
}
// Rewrites the terminal's line: back to its beginning, the text, clear to its end.
void rewrite_line(const std::string& text, const char* end) {
  fmt::print(stderr, "\r{}\x1b[K{}", text, end);
  std::fflush(stderr);
}
}  // namespace

std::string format_seconds(double seconds) {
  if (seconds < 0.95) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string format_count(int64_t n) {
  std::string digits = std::to_string(n);
  const int64_t first = n < 0 ? 1 : 0;
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > first; at -= 3)
    digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

std::string progress_line(const std::string& what, int64_t done, int64_t total, double seconds) {
  const std::string rate = per_second(done, seconds);
  if (total <= 0) return fmt::format("{}  {}  {}", what, format_count(done), rate);
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const std::string left = done > 0 ? "  " + format_seconds(seconds * (1 - share) / share) + " left" : "";
  return fmt::format("{}  {} of {} ({:.0f} %)  {}{}", what, format_count(done), format_count(total),
                     std::floor(100 * share), rate, left);
}

Progress::Progress(std::string what, int64_t total, bool enabled)
    : what_(std::move(what)),
      total_(total),
      enabled_(enabled),
      terminal_(isatty(STDERR_FILENO) == 1),
      next_(quiet_seconds) {}

Progress::~Progress() {
  if (!shown_) return;
  const double seconds = watch_.seconds();
  const std::string of = done_ < total_ ? " of " + format_count(total_) : "";
  const std::string line = fmt::format("{}  {}{} in {}  {}", what_, format_count(done_), of, format_seconds(seconds),
                                       per_second(done_, seconds));
  terminal_ ? rewrite_line(line, "\n") : spdlog::info("{}", line);
}

void Progress::advance(int64_t by) {
  done_ += by;
  if (enabled_ && watch_.seconds() >= next_) show();
}

void Progress::show() {
  const std::string line = progress_line(what_, done_, total_, watch_.seconds());
  terminal_ ? rewrite_line(line, "") : spdlog::info("{}", line);
  shown_ = true;
  next_ = watch_.seconds() + (terminal_ ? terminal_interval : log_interval);
}

}  // namespace notellm

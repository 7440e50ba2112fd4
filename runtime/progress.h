// Progress of anything that takes longer than two seconds: on a terminal one line that is rewritten, elsewhere a log
// line every ten seconds. "tokenize  41,200 of 63,436 (65 %)  20,600/s  1 s left"
#pragma once

#include <cstdint>
#include <string>

#include "runtime/stopwatch.h"

namespace notellm {

// "2 min 5 s"
std::string format_seconds(double seconds);
// "1,234,567"
std::string format_count(int64_t n);
// The line of a Progress that has done `done` of `total` in `seconds`.
std::string progress_line(const std::string& what, int64_t done, int64_t total, double seconds);

// For one thread. Shows nothing at all of work that ends within two seconds.
class Progress {
 public:
  // total 0: unknown, only count and rate are shown. Silent on ranks other than 0 (enabled = false).
  Progress(std::string what, int64_t total, bool enabled = true);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // the closing line, when anything was shown
  void advance(int64_t by = 1);

 private:
  void show();
  std::string what_;
  int64_t total_, done_ = 0;
  bool enabled_, shown_ = false, terminal_;
  Stopwatch watch_;
  double next_;  // seconds
};

}  // namespace notellm

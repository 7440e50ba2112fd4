// Wall-clock seconds.
#pragma once

#include <chrono>
#include <utility>

namespace notellm {

class Stopwatch {
 public:
  // Since it was made.
  double seconds() const { return between(start_, Clock::now()); }
  // Since the last lap, or since it was made.
  double lap() {
    const Clock::time_point now = Clock::now();
    return between(std::exchange(lap_, now), now);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double between(Clock::time_point a, Clock::time_point b) {
    return std::chrono::duration<double>(b - a).count();
  }
  Clock::time_point start_ = Clock::now(), lap_ = start_;
};

}  // namespace notellm

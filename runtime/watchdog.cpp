#include "runtime/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include "runtime/communicator.h"

namespace notellm {
namespace {
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

class Watchdog {
 public:
  ~Watchdog() { set(0); }

  void set(double seconds) {
    {
      const std::lock_guard lock(mutex_);
      seconds_ = seconds;
    }
    changed_.notify_all();
    if (seconds > 0 && !thread_.joinable()) thread_ = std::thread([this] { watch(); });
    if (seconds <= 0 && thread_.joinable()) thread_.join();
  }
  void set_step(int64_t step) {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  void begin(const char* name, int rank) {
    const std::lock_guard lock(mutex_);
    collective_ = name;
    rank_ = rank;
    since_ = Clock::now();
  }
  void end() {
    const std::lock_guard lock(mutex_);
    collective_ = nullptr;
  }

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    while (seconds_ > 0) {
      changed_.wait_for(lock, Seconds(std::min(1.0, seconds_ / 10)));
      const double waited = Seconds(Clock::now() - since_).count();
      if (collective_ && seconds_ > 0 && waited > seconds_) bite(waited);
    }
  }

  [[noreturn]] void bite(double waited) {
    fmt::print(stderr,
               "rank {}: collective {} has not ended after {:.1f} s in step {}. All ranks are ended. The ranks that do "
               "not say this never came to it: look at their last lines. If they were only slow, raise the watchdog's "
               "seconds.\n",
               rank_, collective_, waited, step_);
    std::fflush(stderr);
    std::this_thread::sleep_for(
        Seconds(std::min(1.0, seconds_)));  // the other ranks' lines come at about the same time
    Communicator::abort(static_cast<int>(ErrorKind::peer));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
  double seconds_ = 0;
  int64_t step_ = 0;
  const char* collective_ = nullptr;  // the one that runs now
  int rank_ = 0;
  Clock::time_point since_;
};

Watchdog& watchdog() {
  static Watchdog instance;
  return instance;
}
}  // namespace

WatchedCollective::WatchedCollective(const char* name, int rank) { watchdog().begin(name, rank); }
WatchedCollective::~WatchedCollective() { watchdog().end(); }

void set_watchdog(double seconds) { watchdog().set(seconds); }
void set_watchdog_step(int64_t step) { watchdog().set_step(step); }

}  // namespace notellm

#include "runtime/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/communicator.h"

namespace notellm {
namespace {
using Seconds = std::chrono::duration<double>;

double seconds_of(int64_t nanoseconds) { return 1e-9 * static_cast<double>(nanoseconds); }

std::string in_step(int64_t step) { return step > 0 ? fmt::format(" in step {}", step) : ""; }

class Watchdog {
 public:
  ~Watchdog() { set(0); }

  void set(double seconds) {
    {
      const std::lock_guard lock(mutex_);
      seconds_ = seconds;
      if (seconds > 0) own().alive = steady_now();  // its thread may be late
    }
    changed_.notify_all();
    if (seconds > 0 && !thread_.joinable()) thread_ = std::thread([this] { watch(); });
    if (seconds <= 0 && thread_.joinable()) thread_.join();
  }
  void set_states(std::span<RankState> states, int own, int rank, int ranks, WatchdogMail mail) {
    const std::lock_guard lock(mutex_);
    const std::span<RankState> next = states.empty() ? std::span(&alone_, 1) : states;
    copy(this->own(), next[own]);
    leave();
    states_ = next;
    own_ = own;
    ranks_ = ranks;
    mail_ = std::move(mail);
    this->own().rank = rank;
    this->own().process = getpid();
  }
  void leave() { own().process = 0; }
  void set_step(int64_t step) { own().step = step; }
  void begin(const std::string& collective) {
    RankState& s = own();
    s.set_name(collective);
    s.since.store(steady_now(), std::memory_order_relaxed);
    s.inside.store(true, std::memory_order_release);
  }
  void end() {
    own().inside.store(false, std::memory_order_release);
    own().since.store(steady_now(), std::memory_order_relaxed);
    if (states_[0].has_judged) stay();
  }
  std::string whereabouts() {
    const std::string collective = own().name();
    if (own().step == 0) return "";
    return in_step(own().step) + (ranks_ > 1 && !collective.empty() ? ", last in " + collective : "");
  }

 private:
  RankState& own() { return states_[own_]; }
  static void copy(const RankState& from, RankState& to) {
    to.rank = from.rank.load();
    to.alive = from.alive.load();
    to.since = from.since.load();
    to.step = from.step.load();
    to.inside = from.inside.load();
    to.set_name(from.name());
  }

  double period() const { return std::min(0.2, seconds_ / 10); }
  void watch() {
    std::unique_lock lock(mutex_);
    bool was_stopped = false;
    while (seconds_ > 0) {
      const int64_t since = own().since, before = steady_now();
      own().alive = before;
      changed_.wait_for(lock, Seconds(period()));
      const double slept = seconds_of(steady_now() - before);
      was_stopped = was_stopped || slept > seconds_;
      if (slept > 2 * period()) forget(since, slept);
      if (mail_.answer) mail_.answer(own());
      const bool inside = own().inside.load(std::memory_order_acquire);
      const double waited = seconds_of(steady_now() - own().since);
      // Where a rank is about to end it has its reason, and will say it. A rank that was stopped for so long is the
      // reason.
      const double patience = seconds_ + (was_stopped || somebody_leaves() ? 10 : 0);
      if (inside && seconds_ > 0 && waited > patience) bite(waited);
      for (const RankState& s : states_)
        if (seconds_ > 0 && s.process != 0 && kill(s.process, 0) != 0 && errno == ESRCH) mourn(s);
    }
  }

  // Time in which this process did not run, as a whole job may be stopped for hours and go on, is no waiting.
  void forget(int64_t since, double slept) {
    own().since.compare_exchange_strong(since, since + static_cast<int64_t>(1e9 * slept));
  }

  // A rank that was killed says nothing. The launcher is about to end all, with the exit code of the killed one; where
  // it does not, this ends them.
  [[noreturn]] void mourn(const RankState& s) {
    if (&*std::ranges::find_if(states_, [&](const RankState& other) { return &other != &s && other.process != 0; }) ==
        &own())
      say(fmt::format("rank {} was killed, or crashed, {}{}", s.rank.load(),
                      (s.inside ? "in " : "after ") + (s.name().empty() ? "its start" : s.name()), in_step(s.step)));
    pause(10);
    Communicator::abort(static_cast<int>(ErrorKind::peer));
  }

  // The one who did not come comes after all (a stopped rank, which mpirun continues in order to end it), and all could
  // go on. But they are about to be ended; and mpirun, busy with that, does not survive ranks that leave MPI meanwhile:
  // Open MPI 4.1 with PMIx 4.2 then hangs or crashes in PMIx_server_finalize.
  [[noreturn]] static void stay() {
    std::this_thread::sleep_for(std::chrono::seconds(20));
    Communicator::abort(static_cast<int>(ErrorKind::peer));
  }

  bool somebody_leaves() const {
    return std::ranges::any_of(states_, [](const RankState& s) { return s.process == 0; });
  }

  // The ranks that wait say so, all at about the same time. Then one of each host says which rank is to blame, as it
  // sees and hears of all; unless what was waited for has come meanwhile.
  void bite(double waited) {
    const int64_t since = own().since;
    const std::string collective = own().name();
    say(fmt::format("{} has not ended after {:.1f} s{}", collective, waited, in_step(own().step)));
    pause(std::min(1.0, seconds_));
    if (!states_[0].has_judged && (!own().inside || own().since != since))
      return say(fmt::format("{} has ended after all", collective));
    if (!states_[0].has_judged.exchange(true)) {
      std::vector<RankState> all(static_cast<size_t>(ranks_));
      for (RankState& s : all) s.alive = -1;
      const auto see = [&] {
        for (const RankState& s : states_) copy(s, all[s.rank]);
      };
      see();
      if (std::ssize(states_) < ranks_) {
        hear(all);
        see();  // as it is now
      }
      const int64_t now = steady_now(), stale = static_cast<int64_t>(1e9 * (1 + 5 * period()));
      say(judge(all, own().rank, now, stale) +
          ". All ranks are ended. If it was only slow, raise train.watchdog_seconds");
      if (!other_host_ends(all, now, stale)) Communicator::abort(static_cast<int>(ErrorKind::peer));
    }
    pause(10);  // somebody else ends all
    Communicator::abort(static_cast<int>(ErrorKind::peer));
  }
  // Of the hosts on which ranks wait, the one with the lowest rank ends all: mpirun may stumble over two at once.
  bool other_host_ends(std::span<const RankState> all, int64_t now, int64_t stale) const {
    const auto by_rank = [](const RankState& a, const RankState& b) { return a.rank < b.rank; };
    const int own_first = std::ranges::min_element(states_, by_rank)->rank;
    return std::ranges::any_of(all.first(own_first),
                               [&](const RankState& s) { return s.inside && now - s.alive <= stale; });
  }
  // Of ranks of other hosts. One that answers lives; one that does not was last alive before it was asked.
  void hear(std::span<RankState> all) {
    const int64_t asked = steady_now();
    const double patience = 2 + 10 * period();
    mail_.ask(all, [&] {
      pause(period());
      return seconds_of(steady_now() - asked) < patience;
    });
    for (size_t r = 0; r < all.size(); ++r) {
      all[r].rank = static_cast<int>(r);
      all[r].alive = all[r].alive < 0 ? asked : steady_now();
    }
  }
  void say(const std::string& text) {
    fmt::print(stderr, "notellm: rank {}: {}\n", own().rank.load(), text);
    std::fflush(stderr);
  }
  void pause(double seconds) {
    for (const int64_t begin = steady_now(); seconds_of(steady_now() - begin) < seconds;) {
      own().alive = steady_now();
      if (mail_.answer) mail_.answer(own());
      std::this_thread::sleep_for(Seconds(std::min(0.05, period())));
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
  double seconds_ = 0;
  RankState alone_;
  std::span<RankState> states_ = {&alone_, 1};
  int own_ = 0, ranks_ = 1;
  WatchdogMail mail_;
};

Watchdog& watchdog() {
  static Watchdog instance;
  return instance;
}

std::string list(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank" : "ranks";
  for (size_t i = 0; i < ranks.size(); ++i) text += fmt::format("{} {}", i == 0 ? "" : ",", ranks[i]);
  return text;
}
}  // namespace

std::string RankState::name() const {
  std::string text;
  for (const auto& c : collective) {
    if (c == '\0') break;
    text += c;
  }
  return text;
}

void RankState::set_name(std::string_view text) {
  size_t i = 0;
  for (; i < std::min(text.size(), collective.size() - 1); ++i) collective[i].store(text[i], std::memory_order_relaxed);
  collective[i].store('\0', std::memory_order_relaxed);
}

int64_t steady_now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

std::string collective_text(const char* name, const std::string& group) {
  return fmt::format("collective '{}' of {}", name, group);
}

// A rank that does not run cannot be blamed for where it stands, and one that is in no collective may be waited for by
// ranks that wait for each other in different ones: in this order.
std::string judge(std::span<const RankState> states, int own, int64_t now, int64_t stale) {
  const std::string mine = states[own].name(), step = in_step(states[own].step);
  std::vector<int> stopped, outside;
  const RankState *a_stopped = nullptr, *an_outside = nullptr;
  std::map<std::string, std::vector<int>> inside;  // by collective
  for (const RankState& s : states) {
    const auto note = [&](std::vector<int>& ranks, const RankState*& first) {
      ranks.push_back(s.rank);
      if (!first) first = &s;
    };
    if (s.alive > 0 && now - s.alive > stale)
      note(stopped, a_stopped);
    else if (!s.inside)
      note(outside, an_outside);
    else
      inside[s.name()].push_back(s.rank);
  }
  const auto last = [](const RankState& s) {
    return (s.name().empty() ? std::string() : (s.inside ? ", in " : ", after ") + s.name()) + in_step(s.step);
  };
  if (a_stopped)
    return fmt::format("{} {} not run: no sign of life for {:.1f} s{}", list(stopped),
                       stopped.size() == 1 ? "does" : "do", seconds_of(now - a_stopped->alive), last(*a_stopped));
  if (an_outside)
    return fmt::format("{} did not come to {}: in no collective for {:.1f} s{}", list(outside), mine,
                       seconds_of(now - an_outside->since), last(*an_outside));
  if (inside.size() > 1) {
    std::string where;
    for (const auto& [collective, ranks] : inside)
      where += fmt::format("{}{} in {}", where.empty() ? "" : ", ", list(ranks), collective);
    return fmt::format("ranks wait for each other{}: {}", step, where);
  }
  return fmt::format("all ranks wait in {}{}: their messages do not arrive", mine, step);
}

namespace {
thread_local bool unwatched = false;
}
WatchedCollective::WatchedCollective(const char* name, const std::string& group) {
  if (!unwatched) watchdog().begin(collective_text(name, group));
}
WatchedCollective::~WatchedCollective() {
  if (!unwatched) watchdog().end();
}
void leave_thread_unwatched() { unwatched = true; }

void set_watchdog_states(std::span<RankState> states, int own, int rank, int ranks, WatchdogMail mail) {
  watchdog().set_states(states, own, rank, ranks, std::move(mail));
}
std::string whereabouts() { return watchdog().whereabouts(); }

void leave_watchdog() { watchdog().leave(); }

void set_watchdog(double seconds) { watchdog().set(seconds); }
void set_watchdog_step(int64_t step) { watchdog().set_step(step); }

}  // namespace notellm

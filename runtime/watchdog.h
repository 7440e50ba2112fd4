// Watches the collective that this process's main thread is in.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace notellm {

// What a rank is doing, for the watchdogs of the ranks of its host. Times: nanoseconds of the host's steady clock.
struct alignas(64) RankState {
  std::atomic<int> rank = 0;
  std::atomic<int> process = 0;    // 0: has left, or is about to
  std::atomic<int64_t> alive = 0;  // when its watchdog last looked; 0: it has none yet
  std::atomic<int64_t> since = 0;  // when it came into the collective, or out of it
  std::atomic<int64_t> step = 0;   // 0: before the first
  std::atomic<bool> inside = false;
  std::atomic<bool> has_judged = false;  // of the first rank of the host: one has said, or is about to, who is to blame
  std::array<std::atomic<char>, 112> collective = {};  // which it is in, or was in last

  std::string name() const;
  void set_name(std::string_view collective);  // cut where it is too long
};

// The clock of these times.
int64_t steady_now();

// "collective 'gradients' of data group 0": what all messages call it.
std::string collective_text(const char* name, const std::string& group);

// Marks a collective as running for as long as it lives.
class WatchedCollective {
 public:
  WatchedCollective(const char* name, const std::string& group);
  WatchedCollective(const WatchedCollective&) = delete;
  WatchedCollective& operator=(const WatchedCollective&) = delete;
  ~WatchedCollective();
};

// How the watchdogs of different hosts ask each other; for one thread at a time.
struct WatchdogMail {
  // Answers whoever has asked for this rank's state.
  std::function<void(const RankState& own)> answer;
  // Asks the ranks whose `alive` is below 0 for theirs, [ranks in all], and fills in those that have come when `wait`
  // says that the time is over.
  std::function<void(std::span<RankState> of_rank, const std::function<bool()>& wait)> ask;
};

// From now on the ranks of this host, of `ranks` in all, write what they do into `states`, this one into its own. No
// states: this rank alone, into memory of its own. mail: to the ranks that are not among them.
void set_watchdog_states(std::span<RankState> states, int own, int rank, int ranks, WatchdogMail mail);
// From now on nobody watches the collectives of this thread.
void leave_thread_unwatched();
// This rank is about to end: nobody is to wonder.
void leave_watchdog();

// Why the collective in which states[own] waits does not end, as the ranks' states show it. `now` and `stale` (how long
// a rank that runs may be silent) in nanoseconds.
std::string judge(std::span<const RankState> states, int own, int64_t now, int64_t stale);

// " in step 17, last in collective 'gradients' of data group 0": where this rank is; before the first step "".
std::string whereabouts();

}  // namespace notellm

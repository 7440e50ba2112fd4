// Watches the collective that this process is in: one at a time, since MPI is used by one thread at a time.
#pragma once

namespace notellm {

// Marks a collective as running for as long as it lives. `name` must outlive it.
class WatchedCollective {
 public:
  WatchedCollective(const char* name, int rank);
  WatchedCollective(const WatchedCollective&) = delete;
  WatchedCollective& operator=(const WatchedCollective&) = delete;
  ~WatchedCollective();
};

}  // namespace notellm

// How the ranks of a group on one host pass data: through memory that they share, a turn at a time.
//
// In a turn every rank fills its slot and then reads the others'. Two sets of slots take turns, so that one wait a turn
// is enough: who fills a slot again has seen all others come to the turn after it was read.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runtime/shared_memory.h"

namespace notellm {

class HostExchange {
 public:
  static constexpr int64_t slot_bytes = 256 << 10;  // stays in the cache
  static int64_t bytes_for(int ranks);

  // memory: of bytes_for(ranks), zero at first. shown_rank: what messages call this rank. idle: called again and again
  // while it waits.
  HostExchange(SharedMemory memory, int rank, int ranks, int shown_rank, std::function<void()> idle);

  // What this rank gives in the turn to come: slot_bytes.
  char* slot() const { return slot_of(rank_, turn_ + 1); }
  // Waits until all ranks have filled their slots. collective: as messages name it; shape: of the whole collective,
  // equal on all ranks. Throws Error(peer) on all ranks: ranks are in different collectives, or their shapes differ.
  void turn(const std::string& collective, uint64_t shape);
  // Rank r's slot of the turn that came last.
  const char* slot_of(int r) const { return slot_of(r, turn_); }

 private:
  struct alignas(64) Entry {  // what a rank says of its turn
    uint64_t shape;
    int64_t shown_rank;
    std::array<char, 112> collective;
  };
  struct alignas(64) Flag {
    std::atomic<int64_t> turn;  // the last one that the rank has come to
  };

  char* slot_of(int r, int64_t turn) const;
  Entry& entry_of(int r, int64_t turn) const;
  Flag& flag_of(int r) const;

  SharedMemory memory_;
  int rank_, ranks_, shown_rank_;
  std::function<void()> idle_;
  int64_t turn_ = 0;
};

}  // namespace notellm

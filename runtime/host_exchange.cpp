#include "runtime/host_exchange.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "runtime/error.h"

namespace notellm {

static_assert(std::atomic<int64_t>::is_always_lock_free);

// In memory: flags, two sets of entries, two sets of slots.
int64_t HostExchange::bytes_for(int ranks) {
  return ranks * int64_t{sizeof(Flag) + 2 * sizeof(Entry) + 2 * slot_bytes};
}

HostExchange::HostExchange(SharedMemory memory, int rank, int ranks, int shown_rank, std::function<void()> idle)
    : memory_(std::move(memory)), rank_(rank), ranks_(ranks), shown_rank_(shown_rank), idle_(std::move(idle)) {}

HostExchange::Flag& HostExchange::flag_of(int r) const { return reinterpret_cast<Flag*>(memory_.data())[r]; }

HostExchange::Entry& HostExchange::entry_of(int r, int64_t turn) const {
  return reinterpret_cast<Entry*>(memory_.data() + ranks_ * sizeof(Flag))[turn % 2 * ranks_ + r];
}

char* HostExchange::slot_of(int r, int64_t turn) const {
  return memory_.data() + ranks_ * (sizeof(Flag) + 2 * sizeof(Entry)) + (turn % 2 * ranks_ + r) * slot_bytes;
}

void HostExchange::turn(const std::string& collective, uint64_t shape) {
  constexpr int spins = 200;  // about as long as a rank takes that comes at the same time
  ++turn_;
  Entry& mine = entry_of(rank_, turn_);
  mine.shape = shape;
  mine.shown_rank = shown_rank_;
  mine.collective.fill('\0');
  std::copy_n(collective.data(), std::min(collective.size(), mine.collective.size() - 1), mine.collective.data());
  flag_of(rank_).turn.store(turn_, std::memory_order_release);
  for (int r = 0; r < ranks_; ++r)
    for (int spin = 0; flag_of(r).turn.load(std::memory_order_acquire) < turn_; ++spin)
      if (spin >= spins) idle_();
  for (int r = 0; r < ranks_; ++r) {
    const Entry& other = entry_of(r, turn_);
    if (other.collective != mine.collective)
      fail(ErrorKind::peer, "{}, but rank {} came with {}: their programs or their data are not the same", collective,
           other.shown_rank, other.collective.data());
    if (other.shape != shape)
      fail(ErrorKind::peer, "{}: rank {} has another shape: their programs or their data are not the same", collective,
           other.shown_rank);
  }
}

}  // namespace notellm

// The check of one lane's access against the shadow: bounds, alignment, order.
#pragma once

#include "tests/softgpu/shadow.h"

namespace softgpu {

// A lane of a warp as it appears in the shadow.
struct Self {
  Toucher me, several_lanes, several_warps, several_blocks;
  uint64_t first_thread;  // of the warp
  uint64_t epoch;
};

inline Self global_self(const Warp& warp, int lane, bool atomic) {
  const uint64_t work = warp.run->launch->work, block = warp.block->number % block_many, epoch = warp.epoch;
  const uint64_t first = static_cast<uint64_t>(warp.index) * lanes;
  const uint64_t thread = atomic ? thread_atomic : first + static_cast<uint64_t>(lane);
  return {make_toucher(work, block, thread, epoch),
          make_toucher(work, block, warp_many + static_cast<uint64_t>(warp.index), epoch),
          make_toucher(work, block, thread_many, epoch),
          make_toucher(work, block_many, thread_many, 0),
          first,
          epoch};
}
inline Self shared_self(const Warp& warp, int lane, bool atomic) {
  const uint64_t first = static_cast<uint64_t>(warp.index) * lanes, epoch = warp.epoch;
  const uint64_t thread = atomic ? thread_atomic : first + static_cast<uint64_t>(lane);
  return {make_toucher(1, 0, thread, epoch),
          make_toucher(1, 0, warp_many + static_cast<uint64_t>(warp.index), epoch),
          make_toucher(1, 0, thread_many, epoch),
          0,
          first,
          epoch};
}

// Whether a touch by this block is ordered before the lane's: the same thread, or the same warp before a __syncwarp.
inline bool same_warp(Toucher t, const Self& self) {
  const uint64_t thread = thread_of(t);
  return (thread & ~uint64_t{lanes - 1}) == self.first_thread || thread == thread_of(self.several_lanes);
}
inline bool ordered_in_warp(Toucher t, const Self& self) {
  return t >> epoch_bits == self.me >> epoch_bits || (same_warp(t, self) && epoch_of(t) < self.epoch);
}

// Touches of shared memory and, of this launch and block, of global memory.
struct SharedOrder {
  uint64_t barrier_epoch;
  bool before(Toucher t) const { return epoch_of(t) <= barrier_epoch; }
  bool unordered(Toucher t, const Self& self) const { return !before(t) && !ordered_in_warp(t, self); }
  static constexpr bool other_work(Toucher, const Self&) { return false; }
  Toucher reader(Toucher old, const Self& self) const {
    if (before(old) || ordered_in_warp(old, self)) return self.me;
    return same_warp(old, self) ? self.several_lanes : self.several_warps;
  }
};
struct GlobalOrder {
  Toucher ordered_below;
  uint64_t barrier_epoch;
  bool same_block(Toucher t, const Self& self) const {
    return t >> (thread_bits + epoch_bits) == self.me >> (thread_bits + epoch_bits);
  }
  bool before(Toucher t) const { return t < ordered_below; }
  bool unordered(Toucher t, const Self& self) const {
    if (before(t)) return false;
    if (work_of(t) != work_of(self.me)) return !happens_before_cached(t, self);
    return !same_block(t, self) || (epoch_of(t) > barrier_epoch && !ordered_in_warp(t, self));
  }
  bool other_work(Toucher t, const Self& self) const {
    return work_of(t) != work_of(self.me) && !happens_before_cached(t, self);
  }
  Toucher reader(Toucher old, const Self& self) const {
    if (before(old) || work_of(old) != work_of(self.me)) return self.me;
    if (!same_block(old, self)) return self.several_blocks;
    if (epoch_of(old) <= barrier_epoch || ordered_in_warp(old, self)) return self.me;
    return same_warp(old, self) ? self.several_lanes : self.several_warps;
  }
  static bool happens_before_cached(Toucher t, const Self& self);
};

// Reads and writes n entries. Result: bit 0: an entry that nobody wrote; bit 1: a race.
enum : unsigned { never_written = 1, raced = 2 };

template <class Order>
inline unsigned touch_read(const Toucher* written, Toucher* read, size_t n, const Order& order, const Self& self) {
  unsigned wrong = 0;
  for (size_t i = 0; i < n; ++i) {
    const Toucher w = written[i];
    wrong |= w == 0;
    if (!order.before(w) && order.unordered(w, self)) wrong |= raced;
  }
  for (size_t i = 0; i < n; ++i) {
    if (order.before(read[i])) [[likely]] {
      read[i] = self.me;
      continue;
    }
    if (order.other_work(read[i], self)) shadow::keep_reader(read + i);
    read[i] = order.reader(read[i], self);
  }
  return wrong;
}
template <class Order>
inline unsigned touch_write(Toucher* written, const Toucher* read, size_t n, const Order& order, const Self& self) {
  unsigned wrong = 0;
  for (size_t i = 0; i < n; ++i) {
    if (order.before(written[i]) && order.before(read[i])) [[likely]]
      continue;
    const bool both_atomic = thread_of(written[i]) == thread_atomic && thread_of(self.me) == thread_atomic;
    if (order.unordered(written[i], self) && !both_atomic) wrong |= raced;
    if (read[i] != 0 && order.unordered(read[i], self) && !(both_atomic && thread_of(read[i]) == thread_atomic))
      wrong |= raced;
  }
  for (size_t i = 0; i < n; ++i) written[i] = self.me;
  return wrong;
}

// … of a write, the readers that others have taken the place of; `were` gets them.
inline unsigned touch_other_readers(Toucher* readers, size_t n, const GlobalOrder& order, const Self& self,
                                    Toucher* were) {
  unsigned wrong = 0;
  for (size_t i = 0; i < n; ++i) {
    were[i] = readers[i];
    if (readers[i] != 0 && order.unordered(readers[i], self)) wrong |= raced;
    readers[i] = 0;
  }
  return wrong;
}

}  // namespace softgpu

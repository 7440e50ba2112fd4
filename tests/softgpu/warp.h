// What runs: blocks and their warps.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "tests/softgpu/program.h"

namespace softgpu {

// Who touched a piece of memory last, packed into 64 bits so that a shadow is one compare on the fast path:
//   work (20 bits) | block (19) | thread (11) | epoch (14)
// epoch: counts up at a warp's __syncwarp; at a barrier all warps of the block go on from the same number, so that what
// happened in an epoch up to Block::barrier_epoch is ordered before all that comes. 0: nobody.
using Toucher = uint64_t;
constexpr int epoch_bits = 14, thread_bits = 11, block_bits = 19;
constexpr uint64_t last_epoch = (uint64_t{1} << epoch_bits) - 3;
constexpr uint64_t warp_many = 1024;                       // + w: several threads of warp w
constexpr uint64_t thread_many = (1u << thread_bits) - 1;  // several warps of the block
constexpr uint64_t thread_atomic = thread_many - 1;        // an atomic operation
constexpr uint64_t thread_pending = thread_many - 2;       // shared memory: a cp.async that has not landed
constexpr uint64_t block_many = (1u << block_bits) - 1;    // several blocks
constexpr Toucher make_toucher(uint64_t work, uint64_t block, uint64_t thread, uint64_t epoch) {
  return work << (block_bits + thread_bits + epoch_bits) | block << (thread_bits + epoch_bits) | thread << epoch_bits |
         epoch;
}
constexpr uint64_t work_of(Toucher t) { return t >> (block_bits + thread_bits + epoch_bits); }
constexpr uint64_t block_of(Toucher t) { return t >> (thread_bits + epoch_bits) & ((1u << block_bits) - 1); }
constexpr uint64_t thread_of(Toucher t) { return t >> epoch_bits & ((1u << thread_bits) - 1); }
constexpr uint64_t epoch_of(Toucher t) { return t & ((1u << epoch_bits) - 1); }
constexpr int work_shift = block_bits + thread_bits + epoch_bits;
static_assert(work_shift + work_bits == 64);

// What one instruction of one kernel did; indexed like Program::instructions.
struct Tally {
  uint64_t warps = 0, threads = 0;
  uint64_t bytes = 0, sectors = 0, conflicts = 0;
  uint64_t fetched = 0;  // sectors that the block's first-level cache did not hold
};

// What the blocks of a launch that run on one thread share.
struct Run {
  const Launch* launch = nullptr;
  const Program* program = nullptr;
  Toucher ordered_below = 0;            // touchers below this belong to work that is ordered before the launch
  std::vector<Allocation> allocations;  // by address
  std::vector<Tally> tallies;
  std::atomic<bool>* failed = nullptr;  // an access out of bounds: everybody stops
};

struct Block;

// A set of lanes at the same instruction.
struct Group {
  uint32_t mask, pc;
  bool waiting = false;  // for other lanes, or for a barrier
};

struct AsyncCopy {
  const Instruction* instruction = nullptr;  // that issued it
  uint32_t mask = 0;
  uint8_t bytes = 0;
  std::array<uint32_t, lanes> destination;  // offset in shared memory
  std::array<std::array<std::byte, 16>, lanes> data;
};

struct Warp {
  std::byte* registers = nullptr;  // 64-byte aligned
  const std::byte* constants = nullptr;
  Block* block = nullptr;
  Run* run = nullptr;
  int index = 0;              // in its block
  uint32_t live = 0;          // lanes that exist and have not exited
  std::vector<Group> groups;  // ascending by pc
  bool at_barrier = false;
  uint32_t barrier = 0;
  uint64_t epoch = 1;                             // of its touches
  std::vector<AsyncCopy> open_copies;             // issued, not committed
  std::vector<std::vector<AsyncCopy>> committed;  // groups, oldest first
  const Allocation* last_allocation = nullptr;

  template <class T>
  const T* read(const Operand& o) const {
    return reinterpret_cast<const T*>((o.constant ? constants : registers) + o.offset);
  }
  template <class T>
  T* write(const Operand& o) {
    return reinterpret_cast<T*>(registers + o.offset);
  }
};

// A stand-in for the first-level cache, of one block: 128 KiB, direct-mapped, a tag for each 32-byte sector. Reads only.
constexpr size_t cached_sectors = 4096;

struct Block {
  Run* run;
  uint32_t id[3];
  uint64_t number;  // of all blocks of the launch
  std::vector<Warp> warps;
  std::vector<std::byte> registers;
  std::vector<std::byte> shared;        // bytes, with 64 more
  std::vector<Toucher> shared_written;  // of each 2 bytes
  std::vector<Toucher> shared_read;
  uint64_t barrier_epoch = 0;
  std::vector<std::byte> local;  // [threads][local bytes]
  uint32_t shared_bytes = 0;
  std::vector<uint64_t> cache;             // [cached_sectors] number of the sector that is there; 0: none
};

// Words for a blend: all ones where the lane is in the mask.
inline void expand(uint32_t mask, uint32_t (&words)[lanes]) {
  for (int lane = 0; lane < lanes; ++lane) words[lane] = -(mask >> lane & 1u);
}
inline uint32_t to_mask(const uint32_t* words) {
  uint32_t mask = 0;
  for (int lane = 0; lane < lanes; ++lane) mask |= (words[lane] >> 31) << lane;
  return mask;
}

// d[lane] = value(lane) for the lanes of the mask.
template <class T, class F>
[[gnu::always_inline]] inline void store_lanes(T* d, uint32_t mask, F&& value) {
  if (mask == 0xffffffffu) {
#pragma GCC ivdep
    for (int lane = 0; lane < lanes; ++lane) d[lane] = value(lane);
  } else {
    uint32_t words[lanes];
    expand(mask, words);
#pragma GCC ivdep
    for (int lane = 0; lane < lanes; ++lane) {
      const T x = value(lane);
      d[lane] = words[lane] ? x : d[lane];
    }
  }
}

// Thrown where a launch cannot go on: it has been reported.
struct LaunchFailed {};

// What softgpu does not do: reported as unsupported, and the launch is given up.
[[noreturn]] void give_up(const Warp& warp, const Instruction& instruction, int lane, const std::string& text);

Place place_of(const Warp& warp, const Instruction& instruction, int lane);
void report_at(FindingKind kind, const Warp& warp, const Instruction& instruction, int lane, const std::string& text);

std::string fmt_mask(uint32_t mask);  // "lanes 0x0000000f"

}  // namespace softgpu

// Memory as instructions use it: checked, counted, and seen as bytes of this process.
#pragma once

#include "tests/softgpu/warp.h"

namespace softgpu {

enum class Access : uint8_t { read, write, atomic };

// Addresses of a warp's access: `bytes` each, for the lanes of the mask.
struct Addresses {
  uint64_t of[lanes];
  uint32_t mask;
  uint32_t bytes;
};

// Checks and records the access and fills `at` with where each lane's bytes are. An access outside of memory or
// misaligned is reported and ends the launch (throws LaunchFailed).
void access_global(Warp& warp, const Instruction& instruction, const Addresses& addresses, Access access,
                   std::byte* (&at)[lanes]);
// addresses: of the .shared space. count_conflicts: false where the caller counts them itself.
void access_shared(Warp& warp, const Instruction& instruction, const Addresses& addresses, Access access,
                   std::byte* (&at)[lanes], bool count_conflicts = true);
void access_local(Warp& warp, const Instruction& instruction, const Addresses& addresses, std::byte* (&at)[lanes]);

// Bank conflicts of a request: cycles beyond one, for groups of lanes that fetch 128 bytes together.
uint32_t bank_conflicts(const Addresses& addresses);

// base + offset for each lane; a 32-bit base is widened.
void gather_addresses(const Warp& warp, const Instruction& instruction, const Operand& base, uint32_t mask,
                      uint32_t bytes, Addresses& addresses);

// cp.async: reads now, poisons the destination, and lands at the wait.
void start_copy(Warp& warp, const Instruction& instruction, const Addresses& from, const Addresses& to,
                const uint32_t* source_bytes);
void commit_copies(Warp& warp);
void wait_copies(Warp& warp, const Instruction& instruction, size_t groups_that_may_be_open);

}  // namespace softgpu

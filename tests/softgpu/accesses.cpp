#include "tests/softgpu/accesses.h"

#include <algorithm>
#include <bit>

#include "tests/softgpu/access_check.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

// Calls f(lane) for the lanes of a mask, in order.
template <class F>
void for_lanes(uint32_t mask, F&& f) {
  for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

const Allocation* allocation_of(Warp& warp, uint64_t address) {
  const Allocation* last = warp.last_allocation;
  if (last && address >= last->begin && address < last->end) return last;
  const auto& all = *warp.run->allocations;
  auto after = std::upper_bound(all.begin(), all.end(), address,
                                [](uint64_t a, const Allocation& allocation) { return a < allocation.begin; });
  if (after == all.begin()) return nullptr;
  --after;
  if (address >= after->end) return nullptr;
  return warp.last_allocation = &*after;
}

std::string hexadecimal(uint64_t address) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

// Where an address lies that no allocation holds.
std::string near_what(const Warp& warp, uint64_t address) {
  constexpr uint64_t near = 4096;
  const auto& all = *warp.run->allocations;
  const auto after = std::upper_bound(all.begin(), all.end(), address,
                                      [](uint64_t a, const Allocation& allocation) { return a < allocation.begin; });
  const uint64_t behind = after == all.begin() ? ~uint64_t{0} : address - (after - 1)->end;
  const uint64_t before = after == all.end() ? ~uint64_t{0} : after->begin - address;
  if (behind <= before && behind < near)
    return std::to_string(behind) + " bytes behind the end of " + describe(*(after - 1));
  if (before < behind && before < near)
    return std::to_string(before) + " bytes before the beginning of " + describe(*after);
  return hexadecimal(address) + ", which is in no allocation";
}

[[noreturn]] void out_of_bounds(const Warp& warp, const Instruction& i, int lane, const std::string& text) {
  report_at(FindingKind::out_of_bounds, warp, i, lane, text);
  throw LaunchFailed{};
}

void check_alignment(const Warp& warp, const Instruction& i, int lane, uint64_t address, uint32_t bytes) {
  if (address % bytes == 0) [[likely]]
    return;
  report_at(FindingKind::misaligned, warp, i, lane,
            std::to_string(bytes) + " bytes at address " + hexadecimal(address) + ", which is no multiple of " +
                std::to_string(bytes));
  throw LaunchFailed{};
}

std::string thread_text(const Warp& warp, Toucher t) {
  const uint64_t thread = thread_of(t);
  if (thread == thread_many) return "several threads";
  if (thread == thread_atomic) return "an atomic operation";
  if (thread >= warp_many) return "several lanes of warp " + std::to_string(thread - warp_many);
  const auto& [nx, ny, nz] = warp.run->launch->block;
  return "thread (" + std::to_string(thread % nx) + ", " + std::to_string(thread / nx % ny) + ", " +
         std::to_string(thread / nx / ny) + ")";
}

// The text of a finding about n shadow entries.
void report_global(const Warp& warp, const Instruction& i, int lane, unsigned wrong, const Toucher* written,
                   const Toucher* read, const Toucher* others, size_t n, const GlobalOrder& order, const Self& self,
                   Access access, const Allocation& allocation, uint64_t address) {
  const std::string where = " byte " + std::to_string(address - allocation.begin) + " of " + describe(allocation);
  if (wrong & never_written)
    report_at(FindingKind::uninitialized, warp, i, lane, "reads" + where + ", which nobody wrote");
  if (!(wrong & raced)) return;
  for (size_t k = 0; k < n; ++k)
    for (const Toucher other :
         {written[k], access == Access::read ? Toucher{0} : read[k], access == Access::read ? Toucher{0} : others[k]}) {
      if (other == 0 || !order.unordered(other, self)) continue;
      const char* verb = access == Access::read ? "reads" : "writes";
      const char* did = other == written[k] ? " wrote" : " read";
      if (work_of(other) != work_of(self.me))
        report_at(FindingKind::stream_order, warp, i, lane,
                  verb + where + ", which " + describe_work(static_cast<WorkId>(work_of(other))) + did +
                      ", and nothing orders that before " + describe_work(warp.run->launch->work));
      else
        report_at(FindingKind::race, warp, i, lane,
                  verb + where + ", which " +
                      (block_of(other) == block_of(self.me) ? thread_text(warp, other) + " of its block"
                       : block_of(other) == block_many      ? std::string("other blocks")
                                                            : "block " + std::to_string(block_of(other))) +
                      did + " with nothing in between that orders them");
      return;
    }
}

// The 32-byte sectors of a request, each once: how many, and how many of them were not in the block's cache.
void count_sectors(const Addresses& a, Block& block, bool reads, Tally& tally) {
  uint64_t sectors[2 * lanes];
  int n = 0;
  bool ascending = true;
  for_lanes(a.mask, [&](int lane) {
    const uint64_t first = a.of[lane] / 32, last = (a.of[lane] + a.bytes - 1) / 32;
    for (uint64_t s = first; s <= last; ++s) {
      if (n && sectors[n - 1] == s) continue;
      ascending &= n == 0 || sectors[n - 1] < s;
      sectors[n++] = s;
    }
  });
  if (!ascending) {
    std::sort(sectors, sectors + n);
    n = static_cast<int>(std::unique(sectors, sectors + n) - sectors);
  }
  tally.sectors += static_cast<uint64_t>(n);
  for (int i = 0; reads && i < n; ++i) {
    uint64_t& tag = block.cache[sectors[i] % cached_sectors];
    tally.fetched += tag != sectors[i];
    tag = sectors[i];
  }
}

}  // namespace

bool GlobalOrder::happens_before_cached(Toucher t, const Self& self) {
  thread_local uint64_t earlier = 0, later = 0;
  thread_local bool answer = false;
  const uint64_t a = work_of(t), b = work_of(self.me);
  if (a != earlier || b != later) {
    answer = happens_before(static_cast<WorkId>(a), static_cast<WorkId>(b));
    earlier = a;
    later = b;
  }
  return answer;
}

void gather_addresses(const Warp& warp, const Instruction& instruction, const Operand& base, uint32_t mask,
                      uint32_t bytes, Addresses& addresses) {
  const auto offset = static_cast<uint64_t>(instruction.immediate);
  addresses.mask = mask;
  addresses.bytes = bytes;
  if (instruction.flags & 0x80) {
    const uint32_t* from = warp.read<uint32_t>(base);
    for (int lane = 0; lane < lanes; ++lane) addresses.of[lane] = static_cast<uint32_t>(from[lane] + offset);
  } else {
    const uint64_t* from = warp.read<uint64_t>(base);
    for (int lane = 0; lane < lanes; ++lane) addresses.of[lane] = from[lane] + offset;
  }
}

void access_global(Warp& warp, const Instruction& instruction, const Addresses& addresses, Access access,
                   std::byte* (&at)[lanes]) {
  const GlobalOrder order{warp.run->ordered_below, warp.block->barrier_epoch};
  const uint32_t bytes = addresses.bytes;
  const size_t n = std::max<size_t>(1, bytes / 2);
  for_lanes(addresses.mask, [&](int lane) {
    const uint64_t address = addresses.of[lane];
    check_alignment(warp, instruction, lane, address, bytes);
    const Allocation* allocation = allocation_of(warp, address);
    if (!allocation || address + bytes > allocation->end) [[unlikely]]
      out_of_bounds(
          warp, instruction, lane,
          std::to_string(bytes) + " bytes at " +
              (allocation ? "byte " + std::to_string(address - allocation->begin) + " of " + describe(*allocation)
                          : near_what(warp, address)));
    Toucher* written = shadow::written + shadow::index(address);
    Toucher* read = shadow::read + shadow::index(address);
    const Self self = global_self(warp, lane, access == Access::atomic);
    // The entries as they were, for the message.
    Toucher w[8], r[8], others[8] = {};
    std::copy_n(written, n, w);
    std::copy_n(read, n, r);
    unsigned wrong;
    if (access == Access::read) {
      wrong = touch_read(written, read, n, order, self);
    } else {
      wrong = touch_write(written, read, n, order, self);
      if (access == Access::atomic && w[0] == 0) wrong |= never_written;
      if (shadow::any_other_reader.load(std::memory_order_relaxed)) [[unlikely]]
        wrong |= touch_other_readers(shadow::other_reader + shadow::index(address), n, order, self, others);
    }
    if (wrong) [[unlikely]]
      report_global(warp, instruction, lane, wrong, w, r, others, n, order, self, access, *allocation, address);
    at[lane] = reinterpret_cast<std::byte*>(address) + shadow::host_offset;
  });
  Tally& tally = warp.run->tallies[instruction.index];
  tally.bytes += static_cast<uint64_t>(std::popcount(addresses.mask)) * bytes;
  count_sectors(addresses, *warp.block, access == Access::read, tally);
}

uint32_t bank_conflicts(const Addresses& a) {
  const int together = a.bytes <= 4 ? 32 : a.bytes == 8 ? 16 : 8;  // lanes whose bytes make up one cycle
  uint32_t conflicts = 0;
  for (int first = 0; first < lanes; first += together) {
    uint64_t words[32][lanes];  // distinct 4-byte words asked of each bank
    uint32_t count[32] = {};
    uint32_t most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if (!(a.mask >> lane & 1)) continue;
      for (uint64_t word = a.of[lane] / 4; word <= (a.of[lane] + a.bytes - 1) / 4; ++word) {
        const uint64_t bank = word % 32;
        bool known = false;
        for (uint32_t k = 0; k < count[bank]; ++k) known |= words[bank][k] == word;
        if (known) continue;
        words[bank][count[bank]++] = word;
        most = std::max(most, count[bank]);
      }
    }
    if (most > 1) conflicts += most - 1;
  }
  return conflicts;
}

void access_shared(Warp& warp, const Instruction& instruction, const Addresses& addresses, Access access,
                   std::byte* (&at)[lanes], bool count_conflicts) {
  Block& block = *warp.block;
  const SharedOrder order{block.barrier_epoch};
  const uint32_t bytes = addresses.bytes;
  const size_t n = std::max<size_t>(1, bytes / 2);
  for_lanes(addresses.mask, [&](int lane) {
    const uint64_t address = addresses.of[lane];
    check_alignment(warp, instruction, lane, address, bytes);
    const uint64_t offset = address - shared_window;
    if (offset >= block.shared_bytes || offset + bytes > block.shared_bytes) [[unlikely]]
      out_of_bounds(warp, instruction, lane,
                    std::to_string(bytes) + " bytes at shared address " + hexadecimal(address) + "; the block's " +
                        std::to_string(block.shared_bytes) + " bytes begin at " + hexadecimal(shared_window));
    Toucher* written = block.shared_written.data() + offset / 2;
    Toucher* read = block.shared_read.data() + offset / 2;
    const Self self = shared_self(warp, lane, access == Access::atomic);
    Toucher w[8], r[8];
    std::copy_n(written, n, w);
    std::copy_n(read, n, r);
    const unsigned wrong =
        access == Access::read ? touch_read(written, read, n, order, self) : touch_write(written, read, n, order, self);
    at[lane] = block.shared.data() + offset;
    const bool unwritten = access == Access::atomic && w[0] == 0;
    if (!wrong && !unwritten) [[likely]]
      return;
    const std::string where = " shared byte " + std::to_string(offset);
    const char* verb = access == Access::read ? "reads" : "writes";
    if ((wrong & never_written) || unwritten)
      report_at(FindingKind::uninitialized, warp, instruction, lane,
                std::string("reads") + where + ", which nobody wrote");
    for (size_t k = 0; (wrong & raced) && k < n; ++k) {
      const Toucher other = order.unordered(w[k], self) ? w[k] : access == Access::read ? 0 : r[k];
      if (other == 0 || !order.unordered(other, self)) continue;
      if (thread_of(other) == thread_pending)
        report_at(FindingKind::missing_wait, warp, instruction, lane,
                  verb + where + ", into which a cp.async copies that has not been waited for");
      else
        report_at(FindingKind::race, warp, instruction, lane,
                  verb + where + ", which " + thread_text(warp, other) + (other == w[k] ? " wrote" : " read") +
                      " with no barrier in between");
      break;
    }
  });
  if (count_conflicts) warp.run->tallies[instruction.index].conflicts += bank_conflicts(addresses);
}

void access_local(Warp& warp, const Instruction& instruction, const Addresses& addresses, std::byte* (&at)[lanes]) {
  const uint64_t local_bytes = warp.run->program->local_bytes;
  for_lanes(addresses.mask, [&](int lane) {
    check_alignment(warp, instruction, lane, addresses.of[lane], addresses.bytes);
    const uint64_t offset = addresses.of[lane] - local_window;
    if (offset >= local_bytes || offset + addresses.bytes > local_bytes)
      out_of_bounds(warp, instruction, lane,
                    std::to_string(addresses.bytes) + " bytes at byte " + std::to_string(offset) + " of " +
                        std::to_string(local_bytes) + " bytes of local memory");
    at[lane] = warp.block->local.data() + static_cast<size_t>(warp.index * lanes + lane) * local_bytes + offset;
  });
}

void start_copy(Warp& warp, const Instruction& instruction, const Addresses& from, const Addresses& to,
                const uint32_t* source_bytes) {
  AsyncCopy copy;
  copy.instruction = &instruction;
  copy.mask = to.mask;
  copy.bytes = static_cast<uint8_t>(to.bytes);
  std::byte *source[lanes], *target[lanes];
  Addresses whole = from;  // the lanes that read anything
  for_lanes(to.mask, [&](int lane) {
    copy.data[lane].fill(std::byte{0});
    if (source_bytes && source_bytes[lane] == 0) whole.mask &= ~(1u << lane);
    if (source_bytes && source_bytes[lane] != 0 && source_bytes[lane] != to.bytes)
      give_up(warp, instruction, lane, "cp.async with a source size that is neither 0 nor all");
  });
  access_global(warp, instruction, whole, Access::read, source);
  access_shared(warp, instruction, to, Access::write, target);
  for_lanes(whole.mask, [&](int lane) { std::memcpy(copy.data[lane].data(), source[lane], to.bytes); });
  constexpr uint64_t latest = (uint64_t{1} << epoch_bits) - 1;
  for_lanes(to.mask, [&](int lane) {
    const uint64_t offset = to.of[lane] - shared_window;
    copy.destination[static_cast<size_t>(lane)] = static_cast<uint32_t>(offset);
    std::fill_n(warp.block->shared_written.data() + offset / 2, to.bytes / 2,
                make_toucher(1, 0, thread_pending, latest));
    std::memset(target[lane], 0xff, to.bytes);
  });
  warp.open_copies.push_back(copy);
}

void commit_copies(Warp& warp) {
  warp.committed.push_back(std::move(warp.open_copies));
  warp.open_copies.clear();
}

void wait_copies(Warp& warp, const Instruction&, size_t groups_that_may_be_open) {
  while (warp.committed.size() > groups_that_may_be_open) {
    for (const AsyncCopy& copy : warp.committed.front())
      for_lanes(copy.mask, [&](int lane) {
        const uint32_t offset = copy.destination[static_cast<size_t>(lane)];
        std::memcpy(warp.block->shared.data() + offset, copy.data[static_cast<size_t>(lane)].data(), copy.bytes);
        std::fill_n(warp.block->shared_written.data() + offset / 2, copy.bytes / 2, shared_self(warp, lane, false).me);
      });
    warp.committed.erase(warp.committed.begin());
  }
}

}  // namespace softgpu

// Runs blocks: each on one thread, its warps in turns, a warp's lanes together as long as they agree.
#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>

#include "tests/softgpu/accesses.h"
#include "tests/softgpu/counters.h"
#include "tests/softgpu/streams.h"
#include "tests/softgpu/warp.h"

namespace softgpu {
namespace {

int thread_count() {
  static const int count = [] {
    const char* text = std::getenv("SOFTGPU_THREADS");
    return text ? std::max(1, std::atoi(text)) : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }();
  return count;
}

void fill(Warp& warp, const Operand& place, auto&& value) {
  uint32_t* d = warp.write<uint32_t>(place);
  for (int lane = 0; lane < lanes; ++lane) d[lane] = static_cast<uint32_t>(value(lane));
}

void set_special_registers(Warp& warp) {
  const Launch& launch = *warp.run->launch;
  const Block& block = *warp.block;
  const auto& [nx, ny, nz] = launch.block;
  for (const Special& s : warp.run->program->specials) {
    const std::string& name = s.name;
    const auto thread = [&](int lane) { return static_cast<uint32_t>(warp.index * lanes + lane); };
    const int axis = name.back() == 'x' ? 0 : name.back() == 'y' ? 1 : 2;
    if (name == "%tid.x")
      fill(warp, s.place, [&](int lane) { return thread(lane) % nx; });
    else if (name == "%tid.y")
      fill(warp, s.place, [&](int lane) { return thread(lane) / nx % ny; });
    else if (name == "%tid.z")
      fill(warp, s.place, [&](int lane) { return thread(lane) / nx / ny; });
    else if (name.starts_with("%ntid"))
      fill(warp, s.place, [&](int) { return launch.block[axis]; });
    else if (name.starts_with("%ctaid"))
      fill(warp, s.place, [&](int) { return block.id[axis]; });
    else if (name.starts_with("%nctaid"))
      fill(warp, s.place, [&](int) { return launch.grid[axis]; });
    else if (name == "%laneid")
      fill(warp, s.place, [](int lane) { return lane; });
    else if (name == "%warpid")
      fill(warp, s.place, [&](int) { return warp.index; });
    else if (name == "%nwarpid")
      fill(warp, s.place, [&](int) { return block.warps.size(); });
    else if (name == "%lanemask_lt")
      fill(warp, s.place, [](int lane) { return (1u << lane) - 1; });
    else if (name == "%lanemask_le")
      fill(warp, s.place, [](int lane) { return (2u << lane) - 1; });
    else if (name == "%lanemask_eq")
      fill(warp, s.place, [](int lane) { return 1u << lane; });
    else if (name == "%lanemask_ge")
      fill(warp, s.place, [](int lane) { return ~((1u << lane) - 1); });
    else if (name == "%lanemask_gt")
      fill(warp, s.place, [](int lane) { return ~((2u << lane) - 1); });
    else if (name == "%dynamic_smem_size")
      fill(warp, s.place, [&](int) { return launch.dynamic_shared_bytes; });
    else
      throw std::runtime_error("softgpu: special register " + name + " is not known");
  }
}

void start_block(Block& block, uint64_t number) {
  const Launch& launch = *block.run->launch;
  const Program& program = *block.run->program;
  block.number = number;
  block.id[0] = static_cast<uint32_t>(number % launch.grid[0]);
  block.id[1] = static_cast<uint32_t>(number / launch.grid[0] % launch.grid[1]);
  block.id[2] = static_cast<uint32_t>(number / launch.grid[0] / launch.grid[1]);
  const uint32_t threads = launch.block[0] * launch.block[1] * launch.block[2];
  const size_t warps = (threads + lanes - 1) / lanes;
  block.warps.resize(warps);
  block.registers.resize(warps * program.register_bytes + 64);
  std::byte* registers = block.registers.data() + (64 - reinterpret_cast<uintptr_t>(block.registers.data()) % 64) % 64;
  block.shared_bytes = program.dynamic_shared_offset + launch.dynamic_shared_bytes;
  if (launch.dynamic_shared_bytes == 0) block.shared_bytes = program.shared_bytes;
  block.shared.assign(block.shared_bytes + 64, std::byte{0xff});  // poison
  block.shared_written.assign(block.shared_bytes / 2 + 32, 0);
  block.shared_read.assign(block.shared_bytes / 2 + 32, 0);
  block.barrier_epoch = 0;
  block.cache.assign(cached_sectors, 0);
  block.local.assign(static_cast<size_t>(program.local_bytes) * warps * lanes, std::byte{0xff});
  for (size_t w = 0; w < warps; ++w) {
    Warp& warp = block.warps[w];
    const uint32_t left = threads - static_cast<uint32_t>(w) * lanes;
    warp = Warp{};
    warp.registers = registers + w * program.register_bytes;
    warp.constants = program.constants;
    warp.block = &block;
    warp.run = block.run;
    warp.index = static_cast<int>(w);
    warp.live = left >= lanes ? 0xffffffffu : (1u << left) - 1;
    warp.groups = {{warp.live, 0, false}};
    set_special_registers(warp);
  }
}

// Lanes at the same instruction become one group; ascending by pc.
void merge_groups(Warp& warp) {
  auto& groups = warp.groups;
  std::erase_if(groups, [](const Group& g) { return g.mask == 0; });
  std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.pc < b.pc; });
  for (size_t i = 1; i < groups.size();)
    if (groups[i].pc == groups[i - 1].pc) {
      groups[i - 1].mask |= groups[i].mask;
      groups[i - 1].waiting = false;  // looked at again, now that there are more
      groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(i));
    } else
      ++i;
}

uint32_t predicate_mask(const Warp& warp, const Instruction& i) {
  const uint32_t mask = to_mask(warp.read<uint32_t>(i.predicate));
  return i.negated ? ~mask : mask;
}

// The lanes that have to arrive together at this instruction: those that any of the group's member masks names.
uint32_t needed_lanes(const Warp& warp, const Instruction& i, uint32_t group) {
  if (!i.has_member_mask) return warp.live;
  const uint32_t* members = warp.read<uint32_t>(i.member_mask);
  if (i.member_mask.constant) return members[0];
  uint32_t needed = 0;
  for (uint32_t rest = group; rest; rest &= rest - 1) needed |= members[__builtin_ctz(rest)];
  return needed;
}

// A warp-wide instruction: once for each set of lanes that named the same member mask.
void run_together(Warp& warp, const Instruction& i, uint32_t mask) {
  if (!i.has_member_mask || (i.member_mask.constant && (mask & ~*warp.read<uint32_t>(i.member_mask)) == 0))
    return i.run(warp, i, mask);
  while (mask) {
    const uint32_t* members = warp.read<uint32_t>(i.member_mask);
    const int first = __builtin_ctz(mask);
    const uint32_t named = members[first];
    uint32_t same = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (members[lane] == named)
        same |= 1u << lane;
      else if ((named >> lane & 1) != 0)
        report_at(FindingKind::barrier, warp, i, lane,
                  "names other members than lane " + std::to_string(first) + ", which names it");
    }
    if ((same & ~named) != 0)
      report_at(FindingKind::barrier, warp, i, __builtin_ctz(same & ~named), "is not among the members that it names");
    i.run(warp, i, same);
    mask &= ~same;
  }
}

void count(Warp& warp, const Instruction& i, uint32_t mask) {
  Tally& tally = warp.run->tallies[i.index];
  ++tally.warps;
  tally.threads += static_cast<uint64_t>(__builtin_popcount(mask));
}

// A warp-wide instruction that some of its lanes will never reach.
void report_divergence(const Warp& warp, const Group& group) {
  const Instruction& i = warp.run->program->instructions[group.pc];
  const uint32_t needed = needed_lanes(warp, i, group.mask), missing = needed & ~group.mask;
  const int lane = __builtin_ctz(missing ? missing : 1u);
  const uint32_t exited = missing & ~warp.live;
  report_at(FindingKind::barrier, warp, i, __builtin_ctz(group.mask),
            fmt_mask(missing) + (exited == missing ? " have exited" : " do not come") + " to " +
                warp.run->program->opcodes[i.index] + ", which waits for " + fmt_mask(needed) + " (lane " +
                std::to_string(lane) + " is missing)");
}

// Runs a warp until all its lanes have exited or it waits at a barrier.
void run_warp(Warp& warp) {
  const Program& program = *warp.run->program;
  const Instruction* const code = program.instructions.data();
  while (!warp.groups.empty()) {
    size_t chosen = 0;
    while (chosen < warp.groups.size() && warp.groups[chosen].waiting) ++chosen;
    bool forced = false;
    if (chosen == warp.groups.size()) {  // all wait for lanes that do not come
      chosen = 0;
      forced = true;
      report_divergence(warp, warp.groups[0]);
      warp.groups[0].waiting = false;
    }
    Group& group = warp.groups[chosen];
    const uint32_t limit = chosen + 1 < warp.groups.size() ? warp.groups[chosen + 1].pc : ~0u;
    uint32_t pc = group.pc;
    const uint32_t lanes_here = group.mask;
    while (pc < limit) {
      const Instruction& i = code[pc];
      uint32_t mask = lanes_here;
      if (i.predicated) mask &= predicate_mask(warp, i);
      if (i.control == Control::none) {
        if (mask) i.run(warp, i, mask);
        count(warp, i, mask);
        ++pc;
        continue;
      }
      if (i.control == Control::branch) {
        count(warp, i, lanes_here);  // the predicate is what it decides on
        const auto target = static_cast<uint32_t>(i.immediate);
        if (mask == lanes_here)
          pc = target;
        else if (mask == 0)
          ++pc;
        else {
          group.mask = lanes_here & ~mask;
          group.pc = pc + 1;
          warp.groups.push_back({mask, target, false});
          goto regroup;
        }
        if (pc <= i.index && warp.groups.size() > 1) break;  // back: somebody else may be behind now
        if (warp.run->failed->load(std::memory_order_relaxed)) throw LaunchFailed{};
        continue;
      }
      if (i.control == Control::exit) {
        count(warp, i, mask);
        if (mask == 0) {
          ++pc;
          continue;
        }
        warp.live &= ~mask;
        for (Group& other : warp.groups) other.waiting = false;  // perhaps for these
        group.mask = lanes_here & ~mask;
        group.pc = pc + 1;
        goto regroup;
      }
      // Warp-wide: its lanes have to be here. A predicate that not all lanes share counts as divergence too.
      if (mask == 0) {
        ++pc;
        continue;
      }
      const uint32_t needed = needed_lanes(warp, i, mask);
      if ((needed & ~mask) != 0 && !forced) {
        group.pc = pc;
        group.waiting = true;
        goto regroup;
      }
      forced = false;
      if (i.control == Control::barrier) {
        count(warp, i, mask);
        group.pc = pc + 1;
        warp.at_barrier = true;
        warp.barrier = static_cast<uint32_t>(i.immediate);
        if (i.run) i.run(warp, i, mask);
        merge_groups(warp);
        return;
      }
      run_together(warp, i, mask);
      count(warp, i, mask);
      ++pc;
    }
    group.pc = pc;
  regroup:
    merge_groups(warp);
    if (std::all_of(warp.groups.begin(), warp.groups.end(), [](const Group& g) { return g.waiting; })) continue;
  }
}

// All that the warps did so far is ordered before all that they do from now on.
void pass_barrier(Block& block) {
  uint64_t latest = 0;
  for (const Warp& warp : block.warps) latest = std::max(latest, warp.epoch);
  if (latest >= last_epoch) {
    const Warp& warp = block.warps[0];
    const size_t at = warp.groups.empty() ? 0 : warp.groups[0].pc - 1;
    give_up(warp, block.run->program->instructions[at], 0, "more than 16,380 __syncwarp and barriers in a block");
  }
  block.barrier_epoch = latest;
  for (Warp& warp : block.warps) {
    warp.epoch = latest + 1;
    warp.at_barrier = false;
  }
}

void check_open_copies(Warp& warp) {
  commit_copies(warp);
  for (const std::vector<AsyncCopy>& group : warp.committed)
    for (const AsyncCopy& copy : group) {
      report_at(FindingKind::missing_wait, warp, *copy.instruction, __builtin_ctz(copy.mask),
                "the block ends before this cp.async has been waited for");
      return;
    }
}

void run_block(Block& block) {
  for (;;) {
    bool ran = false;
    for (Warp& warp : block.warps)
      if (!warp.groups.empty() && !warp.at_barrier) {
        run_warp(warp);
        ran = true;
      }
    // Everybody waits at a barrier or has exited.
    const Warp* first = nullptr;
    for (const Warp& warp : block.warps) {
      if (!warp.at_barrier) continue;
      if (first && first->barrier != warp.barrier) {
        const Instruction& i = block.run->program->instructions[warp.groups[0].pc - 1];
        report_at(FindingKind::barrier, warp, i, 0,
                  "waits at barrier " + std::to_string(warp.barrier) + ", warp " + std::to_string(first->index) +
                      " at barrier " + std::to_string(first->barrier));
      }
      if (!first) first = &warp;
    }
    if (!first) {
      if (!ran) break;
      continue;
    }
    pass_barrier(block);
  }
  for (Warp& warp : block.warps) check_open_copies(warp);
}

// The lowest number of a piece of work before this one that nothing orders before it; see Run::ordered_below.
Toucher ordered_before(WorkId work) {
  WorkId lowest = work;
  for (WorkId earlier = work - 1; earlier > 0 && work - earlier < 4096; --earlier)
    if (!happens_before(earlier, work)) lowest = earlier;
  return make_toucher(lowest, 0, 0, 0);
}

}  // namespace

std::string fmt_mask(uint32_t mask) {
  if (mask == 0xffffffffu) return "all lanes";
  char text[32];
  std::snprintf(text, sizeof text, "lanes 0x%08x", mask);
  return text;
}

Place place_of(const Warp& warp, const Instruction& instruction, int lane) {
  const Program& program = *warp.run->program;
  Place place;
  place.kernel = program.readable;
  const SourceLine& source = program.sources[static_cast<size_t>(instruction.source)];
  const auto file = [&](int number) {
    const auto found = program.files->find(number);
    return found == program.files->end() ? std::string() : found->second;
  };
  place.file = file(source.file);
  place.line = source.line;
  if (source.caller_line) {
    place.inlined_file = place.file;
    place.inlined_line = place.line;
    place.file = file(source.caller_file);
    place.line = source.caller_line;
  }
  if (place.file.empty()) {  // compiled without -lineinfo
    place.file = "PTX";
    place.line = instruction.index < program.ptx_lines.size() ? program.ptx_lines[instruction.index] : 0;
  }
  const auto& [nx, ny, nz] = warp.run->launch->block;
  const int64_t thread = warp.index * lanes + lane;
  for (int axis = 0; axis < 3; ++axis) place.block[axis] = warp.block->id[axis];
  place.thread[0] = thread % nx;
  place.thread[1] = thread / nx % ny;
  place.thread[2] = thread / nx / ny;
  return place;
}

void report_at(FindingKind kind, const Warp& warp, const Instruction& instruction, int lane, const std::string& text) {
  report(kind, place_of(warp, instruction, lane), text);
}

void give_up(const Warp& warp, const Instruction& instruction, int lane, const std::string& text) {
  report_at(FindingKind::unsupported, warp, instruction, lane, text);
  throw LaunchFailed{};
}

bool run(const Launch& launch) {
  const Program* program = nullptr;
  for (const auto& p : launch.module->programs)
    if (&p->kernel == launch.kernel) program = p.get();
  if (!program) throw std::runtime_error("softgpu: a kernel that is not of its module");
  const uint64_t blocks = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex mutex;
  const Toucher ordered = ordered_before(launch.work);
  std::vector<Allocation> allocations = live_allocations();
  std::sort(allocations.begin(), allocations.end(),
            [](const Allocation& a, const Allocation& b) { return a.begin < b.begin; });

  const auto work = [&] {
    Run run{.launch = &launch,
            .program = program,
            .ordered_below = ordered,
            .allocations = allocations,
            .tallies = {},
            .failed = &failed};
    run.tallies.resize(program->instructions.size());
    Block block;
    block.run = &run;
    try {
      for (uint64_t number; !failed && (number = next++) < blocks;) {
        start_block(block, number);
        run_block(block);
      }
    } catch (const LaunchFailed&) {
      failed = true;
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      failed = true;
    }
    const std::lock_guard lock(mutex);
    add_tallies(*program, run.tallies);
  };
  const auto threads = static_cast<size_t>(std::min<uint64_t>(static_cast<uint64_t>(thread_count()), blocks));
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
  count_launch(*program, blocks * launch.block[0] * launch.block[1] * launch.block[2]);
  return !failed;
}

}  // namespace softgpu

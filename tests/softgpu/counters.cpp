#include "tests/softgpu/counters.h"

#include <mutex>

namespace softgpu {
namespace {

std::mutex mutex;
std::map<std::string, Counters>& totals() {
  static auto* const all = new std::map<std::string, Counters>;  // lives to the end of the process
  return *all;
}

void add(Counters& to, const Counters& from) {
  // All fields are uint64_t.
  auto* a = reinterpret_cast<uint64_t*>(&to);
  const auto* b = reinterpret_cast<const uint64_t*>(&from);
  for (size_t i = 0; i < sizeof(Counters) / sizeof(uint64_t); ++i) a[i] += b[i];
}

constexpr uint64_t flops_of_mma = 2 * 16 * 8 * 16;

}  // namespace

void add_tallies(const Program& program, const std::vector<Tally>& tallies) {
  Counters c;
  for (size_t i = 0; i < tallies.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    const Tally& t = tallies[i];
    const std::string& opcode = program.opcodes[i];
    c.instructions += t.warps;
    c.thread_instructions += t.threads;
    switch (instruction.kind) {
      case InstructionClass::mma:
        c.mma += t.warps, c.mma_flops += t.warps * flops_of_mma;
        break;
      case InstructionClass::ldmatrix:
        c.ldmatrix += t.warps;
        break;
      case InstructionClass::shared:
        c.shared += t.warps;
        break;
      case InstructionClass::global:
        c.global += t.warps;
        break;
      case InstructionClass::control:
        c.control += t.warps;
        break;
      case InstructionClass::sync:
        c.sync += t.warps;
        break;
      case InstructionClass::special:
        c.special += t.warps;
        break;
      case InstructionClass::other:
        c.other += t.warps;
        break;
    }
    if (instruction.kind == InstructionClass::global) {
      const bool reads = !opcode.starts_with("st."),
                 writes = opcode.starts_with("st.") || opcode.starts_with("atom") || opcode.starts_with("red");
      if (reads)
        c.global_read_bytes += t.bytes, c.global_read_sectors += t.sectors, c.global_fetched_sectors += t.fetched;
      if (writes) c.global_write_bytes += t.bytes, c.global_write_sectors += t.sectors;
    }
    if (instruction.kind == InstructionClass::shared || instruction.kind == InstructionClass::ldmatrix)
      c.shared_requests += t.warps;
    c.shared_conflicts += t.conflicts;
    if (i >= program.mma_loop.begin && i <= program.mma_loop.end) {
      c.loop_instructions += t.warps;
      c.loop_mma += instruction.kind == InstructionClass::mma ? t.warps : 0;
      c.loop_shared_conflicts += t.conflicts;
    }
  }
  const std::lock_guard lock(mutex);
  add(totals()[program.readable], c);
}

void count_launch(const Program& program, uint64_t threads) {
  const std::lock_guard lock(mutex);
  Counters& c = totals()[program.readable];
  ++c.launches;
  c.threads += threads;
}

void count_call(const std::string& name, uint64_t product_flops) {
  const std::lock_guard lock(mutex);
  Counters& c = totals()[name];
  ++c.launches;
  c.product_flops += product_flops;
}

std::vector<std::pair<std::string, Counters>> all_counters() {
  const std::lock_guard lock(mutex);
  return {totals().begin(), totals().end()};
}

}  // namespace softgpu

bool softgpu_counters(const char* name, softgpu::Counters* counters) {
  *counters = {};
  bool found = false;
  const std::lock_guard lock(softgpu::mutex);
  for (const auto& [kernel, c] : softgpu::totals())
    if (kernel.find(name) != std::string::npos) {
      softgpu::add(*counters, c);
      found = true;
    }
  return found;
}

void softgpu_reset_counters() {
  const std::lock_guard lock(softgpu::mutex);
  softgpu::totals().clear();
}

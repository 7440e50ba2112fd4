#include "tests/softgpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

#include "tests/softgpu/shadow.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

constexpr size_t space = size_t{64} << 30;  // addresses; never given out twice
constexpr size_t alignment = 256, gap = 4096;

struct State {
  std::byte* device = nullptr;  // PROT_NONE
  std::byte* host = nullptr;    // the same pages to be read and written
  std::mutex mutex;
  std::map<uint64_t, Allocation> live;          // by begin
  std::shared_ptr<const Allocations> snapshot;  // of them; null: they have changed
  size_t used = 0, next = gap, limit = 0;
};

std::byte* reserve(size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("softgpu: cannot reserve addresses");
  return static_cast<std::byte*>(p);
}

// Lives until the process ends: destructors of the program still free memory.
State& state() {
  static State* const made = [] {
    auto* s = new State;
    const char* megabytes = std::getenv("SOFTGPU_MEMORY_MB");
    s->limit = static_cast<size_t>(megabytes ? std::atoll(megabytes) : 8192) << 20;
    s->device = reserve(space, PROT_NONE);
    const int file = memfd_create("softgpu", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(space)) != 0)
      throw std::runtime_error("softgpu: cannot make a memory file");
    void* host = mmap(nullptr, space, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (host == MAP_FAILED) throw std::runtime_error("softgpu: cannot map the memory file");
    close(file);
    s->host = static_cast<std::byte*>(host);
    shadow::written = reinterpret_cast<Toucher*>(reserve(space / 2 * sizeof(Toucher), PROT_READ | PROT_WRITE));
    shadow::read = reinterpret_cast<Toucher*>(reserve(space / 2 * sizeof(Toucher), PROT_READ | PROT_WRITE));
    shadow::other_reader = reinterpret_cast<Toucher*>(reserve(space / 2 * sizeof(Toucher), PROT_READ | PROT_WRITE));
    shadow::base = reinterpret_cast<uint64_t>(s->device);
    shadow::host_offset = s->host - s->device;
    return s;
  }();
  return *made;
}

// Whether `bytes` bytes there lie in one allocation; reports it where they do not.
bool in_bounds(uint64_t address, size_t bytes, const Place& place) {
  Allocation found;
  const bool known = find_allocation(address, found);
  if (known && address + bytes <= found.end) return true;
  report(FindingKind::out_of_bounds, place,
         known ? std::to_string(bytes) + " bytes at byte " + std::to_string(address - found.begin) + " of " +
                     describe(found)
               : std::to_string(bytes) + " bytes at an address that is in no allocation" +
                     (is_device_address(address) ? "" : " (it is not the device's)"));
  return false;
}

// Reports a range that an earlier piece of work touched without being ordered before this one.
void check_order(const Toucher* touchers, size_t count, WorkId work, const Place& place, const char* what) {
  WorkId last_fine = 0;
  for (size_t i = 0; i < count; ++i) {
    const auto earlier = static_cast<WorkId>(work_of(touchers[i]));
    if (earlier == 0 || earlier == work || earlier == last_fine) continue;
    if (happens_before(earlier, work)) {
      last_fine = earlier;
      continue;
    }
    report(FindingKind::stream_order, place,
           std::string(what) + describe_work(earlier) + ", and nothing orders that before " + describe_work(work));
    return;
  }
}

// A library's call or a copy is from now on the range's reader.
void mark_read(size_t first, size_t count, WorkId work) {
  WorkId last_fine = 0;
  for (Toucher* entry = shadow::read + first; entry < shadow::read + first + count; ++entry) {
    const auto earlier = static_cast<WorkId>(work_of(*entry));
    if (earlier != 0 && earlier != work && earlier != last_fine) {
      if (happens_before(earlier, work))
        last_fine = earlier;
      else
        shadow::keep_reader(entry);
    }
    *entry = make_toucher(work, block_many, thread_many, 0);
  }
}

size_t granules(uint64_t address, size_t bytes) {
  return shadow::index(address + bytes - 1) - shadow::index(address) + 1;
}

}  // namespace

std::string describe(const Allocation& a) { return std::to_string(a.end - a.begin) + " bytes of " + a.what; }

uint64_t allocate(size_t bytes, std::string what) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (s.used + bytes > s.limit || s.next + rounded + gap > space) return 0;
  const uint64_t begin = reinterpret_cast<uint64_t>(s.device) + s.next;
  s.next += rounded + gap;
  s.used += bytes;
  s.snapshot.reset();
  s.live[begin] = {begin, begin + bytes, std::move(what)};
  return begin;
}

bool release(uint64_t address) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto found = s.live.find(address);
  if (found == s.live.end()) return false;
  const size_t bytes = found->second.end - found->second.begin;
  s.used -= bytes;
  s.snapshot.reset();
  s.live.erase(found);
  // Whole pages go back to the system.
  constexpr size_t page = 4096;
  const size_t begin = (address - shadow::base + page - 1) / page * page,
               end = (address - shadow::base + bytes) / page * page;
  if (end > begin) {
    madvise(s.host + begin, end - begin, MADV_REMOVE);
    for (Toucher* touchers : {shadow::written, shadow::read, shadow::other_reader})
      madvise(touchers + begin / 2, (end - begin) / 2 * sizeof(Toucher), MADV_DONTNEED);
  }
  return true;
}

size_t bytes_in_use() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.used;
}
size_t memory_size() { return state().limit; }

std::shared_ptr<const Allocations> live_allocations() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!s.snapshot) {
    auto all = std::make_shared<Allocations>();
    for (const auto& [begin, allocation] : s.live) all->push_back(allocation);
    s.snapshot = std::move(all);
  }
  return s.snapshot;
}

bool is_device_address(uint64_t address) {
  const auto base = reinterpret_cast<uint64_t>(state().device);
  return address >= base && address < base + space;
}

bool find_allocation(uint64_t address, Allocation& found) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  auto after = s.live.upper_bound(address);
  if (after == s.live.begin()) return false;
  --after;
  if (address >= after->second.end) return false;
  found = after->second;
  return true;
}

std::byte* host_view(uint64_t device_address) {
  state();
  return reinterpret_cast<std::byte*>(device_address) + shadow::host_offset;
}

bool access_read(uint64_t address, size_t bytes, WorkId work, const Place& place) {
  if (bytes == 0) return true;
  if (!in_bounds(address, bytes, place)) return false;
  const size_t first = shadow::index(address), count = granules(address, bytes);
  const Toucher* written = shadow::written + first;
  for (size_t i = 0; i < count; ++i)
    if (written[i] == 0) {
      Allocation a;
      find_allocation(address, a);
      report(FindingKind::uninitialized, place,
             "reads byte " + std::to_string(address + 2 * i - a.begin) + " of " + describe(a) + ", which nobody wrote");
      break;
    }
  check_order(written, count, work, place, "reads what was written by ");
  mark_read(first, count, work);
  return true;
}

bool access_write(uint64_t address, size_t bytes, WorkId work, const Place& place) {
  if (bytes == 0) return true;
  if (!in_bounds(address, bytes, place)) return false;
  const size_t first = shadow::index(address), count = granules(address, bytes);
  check_order(shadow::written + first, count, work, place, "writes what was written by ");
  check_order(shadow::read + first, count, work, place, "writes what is read by ");
  if (shadow::any_other_reader) {
    check_order(shadow::other_reader + first, count, work, place, "writes what is read by ");
    std::fill_n(shadow::other_reader + first, count, Toucher{0});
  }
  std::fill_n(shadow::written + first, count, make_toucher(work, block_many, thread_many, 0));
  return true;
}

void mark_written(uint64_t address, size_t bytes) {
  if (bytes) std::fill_n(shadow::written + shadow::index(address), granules(address, bytes), Toucher{1});
}

bool access_copy(uint64_t from, uint64_t to, size_t bytes, WorkId work, const Place& place) {
  if (bytes == 0) return true;
  if (!in_bounds(from, bytes, place) || !in_bounds(to, bytes, place)) return false;
  const size_t source = shadow::index(from), target = shadow::index(to), count = granules(from, bytes);
  check_order(shadow::written + source, count, work, place, "reads what was written by ");
  mark_read(source, count, work);
  if (!access_write(to, bytes, work, place)) return false;
  for (size_t i = 0; i < std::min(count, granules(to, bytes)); ++i)
    if (shadow::written[source + i] == 0) shadow::written[target + i] = 0;
  return true;
}

}  // namespace softgpu

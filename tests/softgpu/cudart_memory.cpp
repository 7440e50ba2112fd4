// Memory, copies and fills.
//
// Copies from and to pinned memory happen as late as can be. What the host does to that memory before it has waited is
// found: the bytes that a queued copy will read must not change, and where one will write stand 0xFF (NaN) until then.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "tests/softgpu/at_end.h"
#include "tests/softgpu/cudart.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

constexpr size_t pinned_alignment = 256;
constexpr int poison = 0xFF;

// A queued copy's bytes in pinned memory.
struct Use {
  const std::byte *begin, *end;
  bool written;
};
struct Pinned {
  std::mutex mutex;
  std::map<const std::byte*, size_t> live;  // address → bytes
  std::list<Use> uses;
};
Pinned& pinned() {
  static Pinned& all = *new Pinned;
  return all;
}

// The allocation that holds the byte; the mutex is held.
const std::pair<const std::byte* const, size_t>* find(const Pinned& all, const void* address) {
  const auto* byte = static_cast<const std::byte*>(address);
  auto next = all.live.upper_bound(byte);
  if (next == all.live.begin()) return nullptr;
  const auto& found = *--next;
  return byte < found.first + found.second ? &found : nullptr;
}

bool overlaps(const Pinned& all, const std::byte* begin, const std::byte* end, bool written) {
  return std::ranges::any_of(
      all.uses, [&](const Use& use) { return use.written == written && use.begin < end && begin < use.end; });
}

uint64_t hash(const std::byte* data, size_t bytes) {
  constexpr uint64_t prime = 0x9e3779b97f4a7c15;
  uint64_t h = bytes;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    h = (h ^ word) * prime;
    h ^= h >> 29;
  }
  for (; bytes > 0; ++data, --bytes) h = (h ^ static_cast<uint64_t>(*data)) * prime;
  return h;
}

// The host's side of a queued copy.
class PinnedUse {
 public:
  PinnedUse(std::byte* data, size_t bytes, bool written) : data_(data), bytes_(bytes) {
    Pinned& all = pinned();
    const std::lock_guard lock(all.mutex);
    // Where a queued copy will write first, or one has still to read, the bytes cannot tell what the host did.
    checked_ = !overlaps(all, data, data + bytes, true) && !(written && overlaps(all, data, data + bytes, false));
    if (checked_ && written) std::memset(data, poison, bytes);
    if (checked_) hash_ = hash(data, bytes);
    place_ = all.uses.insert(all.uses.end(), {data, data + bytes, written});
  }
  // To be called when the copy runs, before it touches the bytes.
  void begin(WorkId work) {
    Pinned& all = pinned();
    const std::lock_guard lock(all.mutex);
    if (checked_ && hash(data_, bytes_) != hash_) {
      Place place;
      place.kernel = "cudaMemcpyAsync";
      report(FindingKind::stream_order, place,
             std::string("the host changed pinned memory that ") + describe_work(work) + " had still to " +
                 (place_->written ? "write" : "read") + ", before it waited for that copy");
    }
    all.uses.erase(place_);
  }

 private:
  std::byte* data_;
  size_t bytes_;
  uint64_t hash_ = 0;
  bool checked_ = false;
  std::list<Use>::iterator place_;
};

bool on_device(const void* address) { return is_device_address(reinterpret_cast<uint64_t>(address)); }

// Whether a range lies in one allocation, where an allocation is known for its beginning.
bool fits(const void* address, size_t bytes) {
  if (on_device(address)) {
    Allocation found;
    const auto begin = reinterpret_cast<uint64_t>(address);
    return find_allocation(begin, found) && bytes <= found.end - begin;
  }
  Pinned& all = pinned();
  const std::lock_guard lock(all.mutex);
  const auto* found = find(all, address);
  return !found || static_cast<const std::byte*>(address) + bytes <= found->first + found->second;
}

Place call_place(const char* call) {
  Place place;
  place.kernel = call;
  return place;
}

void read_device(const void* from, std::byte* to, size_t bytes, WorkId work) {
  const auto address = reinterpret_cast<uint64_t>(from);
  if (access_read(address, bytes, work, call_place("copy to the host")))
    std::memcpy(to, host_view(address), bytes);
  else
    lose_context();
}

void write_device(const std::byte* from, void* to, size_t bytes, WorkId work) {
  const auto address = reinterpret_cast<uint64_t>(to);
  if (access_write(address, bytes, work, call_place("copy from the host")))
    std::memcpy(host_view(address), from, bytes);
  else
    lose_context();
}

void queue_device_copy(const void* from, void* to, size_t bytes, void* stream) {
  enqueue(stream, "copy within the device", [=](WorkId work) {
    const auto a = reinterpret_cast<uint64_t>(from), b = reinterpret_cast<uint64_t>(to);
    if (access_copy(a, b, bytes, work, call_place("copy within the device")))
      std::memmove(host_view(b), host_view(a), bytes);
    else
      lose_context();
  });
}

void queue_upload(const void* from, void* to, size_t bytes, void* stream) {
  auto* source = static_cast<std::byte*>(const_cast<void*>(from));
  if (is_pinned(from)) {
    auto use = std::make_shared<PinnedUse>(source, bytes, false);
    enqueue(stream, "copy from pinned memory", [=](WorkId work) {
      use->begin(work);
      write_device(source, to, bytes, work);
    });
    return;
  }
  // As a GPU's driver does: staged before the call returns.
  auto staged = std::make_shared<std::vector<std::byte>>(source, source + bytes);
  enqueue(stream, "copy from the host", [=](WorkId work) { write_device(staged->data(), to, bytes, work); });
}

void queue_download(const void* from, void* to, size_t bytes, void* stream) {
  auto* destination = static_cast<std::byte*>(to);
  if (is_pinned(to)) {
    auto use = std::make_shared<PinnedUse>(destination, bytes, true);
    enqueue(stream, "copy to pinned memory", [=](WorkId work) {
      use->begin(work);
      read_device(from, destination, bytes, work);
    });
    return;
  }
  enqueue(stream, "copy to the host", [=](WorkId work) { read_device(from, destination, bytes, work); });
  synchronize(stream);
}

cudaError_t check_copy(const char* call, const void* from, const void* to, size_t bytes, cudaMemcpyKind kind) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return result(cudaErrorInvalidValue);
  if (!from || !to) return refuse(call, "null pointer", cudaErrorInvalidValue);
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && (on_device(from) != from_device || on_device(to) != to_device))
    return refuse(call, "the pointers are not of the kind that the call names", cudaErrorInvalidValue);
  for (const void* address : {from, to})
    if (!fits(address, bytes))
      return refuse(call, std::to_string(bytes) + " bytes reach beyond their allocation, or it was freed",
                    cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t queue_copy(const char* call, const void* from, void* to, size_t bytes, cudaMemcpyKind kind, void* stream) {
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse(call, "the stream does not exist", cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  if (const cudaError_t error = check_copy(call, from, to, bytes, kind)) return error;
  if (on_device(from) && on_device(to))
    queue_device_copy(from, to, bytes, stream);
  else if (on_device(to))
    queue_upload(from, to, bytes, stream);
  else if (on_device(from))
    queue_download(from, to, bytes, stream);
  else {
    synchronize(stream);
    std::memmove(to, from, bytes);
  }
  return result(ready());
}

cudaError_t queue_fill(const char* call, void* to, int value, size_t bytes, void* stream) {
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse(call, "the stream does not exist", cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  if (!on_device(to) || !fits(to, bytes))
    return refuse(call, std::to_string(bytes) + " bytes that are not all of one device allocation",
                  cudaErrorInvalidValue);
  enqueue(stream, "fill", [=](WorkId work) {
    const auto address = reinterpret_cast<uint64_t>(to);
    if (access_write(address, bytes, work, call_place("fill")))
      std::memset(host_view(address), value, bytes);
    else
      lose_context();
  });
  return cudaSuccess;
}

cudaError_t allocate_pinned(void** data, size_t bytes) {
  if (const cudaError_t error = ready()) return result(error);
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  void* memory =
      std::aligned_alloc(pinned_alignment, (bytes + pinned_alignment - 1) / pinned_alignment * pinned_alignment);
  if (!memory) return result(cudaErrorMemoryAllocation);
  std::memset(memory, poison, bytes);  // nobody may count on zeros
  Pinned& all = pinned();
  const std::lock_guard lock(all.mutex);
  all.live.emplace(static_cast<std::byte*>(memory), bytes);
  *data = memory;
  return cudaSuccess;
}

cudaError_t copy_symbol(const char* call, const void* symbol, size_t bytes, size_t offset, const void* from, void* to,
                        cudaMemcpyKind kind, void* stream) {
  size_t size = 0;
  const uint64_t address = symbol_address(symbol, size);
  if (address == 0) return result(cudaErrorInvalidSymbol);
  if (offset + bytes > size) return refuse(call, "beyond the variable's end", cudaErrorInvalidValue);
  auto* variable = reinterpret_cast<void*>(address + offset);
  return queue_copy(call, from ? from : variable, to ? to : variable, bytes, kind, stream);
}

void look_for_leaks() {
  const auto leak = [](const char* what, uint64_t bytes) {
    report(FindingKind::leak, call_place(what), std::to_string(bytes) + " bytes were not freed");
  };
  if (context_lost()) return;  // nothing can be freed then
  const auto allocations = live_allocations();
  for (const Allocation& allocation : *allocations)
    if (allocation.what == "cudaMalloc") leak("cudaMalloc", allocation.end - allocation.begin);
  for (const auto& [data, bytes] : pinned().live) leak("cudaMallocHost", bytes);
}
__attribute__((constructor)) void register_checks() { end_checks().push_back(look_for_leaks); }

}  // namespace

bool is_pinned(const void* address) {
  Pinned& all = pinned();
  const std::lock_guard lock(all.mutex);
  return find(all, address) != nullptr;
}

void release_all_pinned() {
  Pinned& all = pinned();
  const std::lock_guard lock(all.mutex);
  for (const auto& [data, bytes] : all.live) std::free(const_cast<std::byte*>(data));
  all.live.clear();
  all.uses.clear();
}

}  // namespace softgpu

using namespace softgpu;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (const cudaError_t error = ready()) return result(error);
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  const uint64_t address = allocate(bytes, "cudaMalloc");
  if (address == 0) return result(cudaErrorMemoryAllocation);
  *data = reinterpret_cast<void*>(address);
  return cudaSuccess;
}

// All work runs first, as on a GPU; but that promises the program no order that it could build on.
cudaError_t cudaFree(void* data) {
  if (const cudaError_t error = ready()) return result(error);
  if (!data) return cudaSuccess;
  run_all();
  Allocation found;
  const auto address = reinterpret_cast<uint64_t>(data);
  const bool ours = find_allocation(address, found) && found.begin == address && found.what == "cudaMalloc";
  if (!ours || !release(address))
    return refuse("cudaFree", "not the beginning of live device memory: freed twice, or never allocated",
                  cudaErrorInvalidValue);
  return result(ready());
}

cudaError_t cudaMallocHost(void** data, size_t bytes) { return allocate_pinned(data, bytes); }
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) { return allocate_pinned(data, bytes); }

cudaError_t cudaFreeHost(void* data) {
  if (const cudaError_t error = ready()) return result(error);
  if (!data) return cudaSuccess;
  const auto* begin = static_cast<std::byte*>(data);
  Pinned& all = pinned();
  std::unique_lock lock(all.mutex);
  const auto found = all.live.find(begin);
  if (found == all.live.end())
    return refuse("cudaFreeHost", "not the beginning of live pinned memory: freed twice, or never allocated",
                  cudaErrorInvalidValue);
  const auto* end = begin + found->second;
  if (overlaps(all, begin, end, true) || overlaps(all, begin, end, false)) {
    report(FindingKind::invalid_call, call_place("cudaFreeHost"),
           "pinned memory is freed while a queued copy has still to use it: wait for the copy first");
    lock.unlock();
    run_all();
    lock.lock();
  }
  all.live.erase(begin);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return queue_copy("cudaMemcpyAsync", from, to, bytes, kind, stream);
}

// Within the device the host does not wait, here as there.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  look_for_unchecked_launch();
  const cudaError_t status = queue_copy("cudaMemcpy", from, to, bytes, kind, nullptr);
  if (status != cudaSuccess || (on_device(from) && on_device(to))) return status;
  synchronize(nullptr);
  return result(ready());
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return queue_fill("cudaMemsetAsync", to, value, bytes, stream);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return queue_fill("cudaMemset", to, value, bytes, nullptr);
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind kind) {
  const cudaError_t status = copy_symbol("cudaMemcpyToSymbol", symbol, bytes, offset, from, nullptr, kind, nullptr);
  if (status == cudaSuccess) synchronize(nullptr);
  return status;
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind kind) {
  const cudaError_t status = copy_symbol("cudaMemcpyFromSymbol", symbol, bytes, offset, nullptr, to, kind, nullptr);
  if (status == cudaSuccess) synchronize(nullptr);
  return status;
}
cudaError_t cudaGetSymbolAddress(void** data, const void* symbol) {
  size_t bytes = 0;
  *data = reinterpret_cast<void*>(symbol_address(symbol, bytes));
  return *data ? cudaSuccess : result(cudaErrorInvalidSymbol);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  if (const cudaError_t error = ready()) return result(error);
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  if (on_device(address)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = const_cast<void*>(address);
  } else if (is_pinned(address)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(address);
  }
  return cudaSuccess;
}

}  // extern "C"

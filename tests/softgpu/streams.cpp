#include "tests/softgpu/streams.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

namespace softgpu {
namespace {

// By stream: the place of the last of its works that is ordered before. Shared by works that follow each other.
using Clock = std::vector<uint32_t>;
using ClockPtr = std::shared_ptr<const Clock>;

struct WorkInfo {
  uint32_t stream = 0, place = 0;  // place: from 1, in the order of the stream
  const char* name = nullptr;
  ClockPtr before;  // of other streams
};

// Works by number. Entries never move, so that they are read without a lock.
class Works {
 public:
  WorkId add(WorkInfo info) {
    if (last_ == most) {
      std::fprintf(stderr, "softgpu: this process has queued %u works, more than the shadow of memory can tell apart\n",
                   most);
      _exit(99);
    }
    const WorkId id = ++last_;
    if (id % chunk == 0 || id == 1) chunks_[id / chunk] = new WorkInfo[chunk];
    chunks_[id / chunk][id % chunk] = std::move(info);
    return id;
  }
  const WorkInfo& operator[](WorkId id) const { return chunks_[id / chunk][id % chunk]; }

 private:
  static constexpr uint32_t chunk = 1 << 14;
  static constexpr WorkId most = (1 << work_bits) - 1;
  std::array<WorkInfo*, (1 << work_bits) / chunk> chunks_{};
  WorkId last_ = 0;
};

struct Queued {
  WorkId id;
  std::function<void(WorkId)> run;
};
struct Stream {
  uint32_t index;
  bool blocking;
  std::deque<Queued> queue;
  uint32_t last = 0, done = 0;  // places
  ClockPtr clock;               // what is before its next work
  uint64_t host_version = 0;    // of the host's clock that is in `clock`
};
using Moment = std::chrono::steady_clock::time_point;
struct Event {
  bool timing;
  bool recorded = false;
  uint32_t stream = 0, place = 0;  // the last work before it in its stream
  ClockPtr before;                 // of other streams
  std::shared_ptr<std::atomic<Moment>> moment;
};

struct Order {
  std::mutex mutex;                // of everything here
  std::recursive_mutex execution;  // held while works run, taken before `mutex`
  Works works;
  std::vector<std::unique_ptr<Stream>> streams;  // by index, also those destroyed; 0: the default stream
  std::unordered_map<void*, uint32_t> live;      // handle → index
  std::unordered_map<void*, std::unique_ptr<Event>> events;
  std::set<std::string> names;
  ClockPtr host;
  uint64_t host_version = 0;
  std::atomic<bool> lost = false;

  Order() { streams.emplace_back(new Stream{.index = 0, .blocking = true, .queue = {}, .clock = {}}); }
};
Order& order() {  // never destroyed: streams may be used until the very end
  static Order& all = *new Order;
  return all;
}
using Lock = std::unique_lock<std::mutex>;

void merge(ClockPtr& into, const ClockPtr& other, uint32_t stream = 0, uint32_t place = 0) {
  const auto at = [](const ClockPtr& clock, size_t i) { return clock && i < clock->size() ? (*clock)[i] : 0; };
  const size_t other_size = std::max<size_t>(other ? other->size() : 0, place > 0 ? stream + 1 : 0);
  const auto wanted = [&](size_t i) { return std::max(at(other, i), i == stream ? place : 0); };
  size_t i = 0;
  while (i < other_size && wanted(i) <= at(into, i)) ++i;
  if (i == other_size) return;
  auto merged = into ? std::make_shared<Clock>(*into) : std::make_shared<Clock>();
  merged->resize(std::max(merged->size(), other_size));
  for (; i < other_size; ++i) (*merged)[i] = std::max((*merged)[i], wanted(i));
  into = std::move(merged);
}

Stream* find_stream(Order& all, void* handle) {
  if (!handle) return all.streams[0].get();
  const auto found = all.live.find(handle);
  return found == all.live.end() ? nullptr : all.streams[found->second].get();
}

// Brings the clock up to what is before the stream's next work.
void advance(Order& all, Stream& stream) {
  if (stream.host_version != all.host_version) {
    merge(stream.clock, all.host);
    stream.host_version = all.host_version;
  }
  if (stream.index == 0) {
    for (const auto& other : all.streams)
      if (other->blocking && other->index != 0) merge(stream.clock, other->clock, other->index, other->last);
  } else if (stream.blocking) {
    merge(stream.clock, all.streams[0]->clock, 0, all.streams[0]->last);
  }
}

void run_clock(Order& all, Lock& lock, const ClockPtr& clock, uint32_t but_for);

// Runs the stream's works up to `place`, each after what it waits for. `execution` is held. A work waits only for
// works that were queued before it, so that the streams that wait for one another are never a circle.
void run_until(Order& all, Lock& lock, Stream& stream, uint32_t place) {
  while (stream.done < place && !stream.queue.empty()) {
    const WorkInfo& info = all.works[stream.queue.front().id];
    run_clock(all, lock, info.before, stream.index);
    const Queued work = std::move(stream.queue.front());
    stream.queue.pop_front();
    lock.unlock();
    if (!all.lost) work.run(work.id);
    lock.lock();
    stream.done = info.place;
  }
}

void run_clock(Order& all, Lock& lock, const ClockPtr& clock, uint32_t but_for) {
  for (uint32_t i = 0; clock && i < clock->size(); ++i)
    if (i != but_for) run_until(all, lock, *all.streams[i], (*clock)[i]);
}

void run_event(Order& all, Lock& lock, const Event& event) {
  run_clock(all, lock, event.before, event.stream);
  run_until(all, lock, *all.streams[event.stream], event.place);
}

void host_waited(Order& all, const ClockPtr& clock, uint32_t stream, uint32_t place) {
  merge(all.host, clock, stream, place);
  ++all.host_version;
}

void synchronize(Order& all, Lock& lock, Stream& stream) {
  advance(all, stream);
  const ClockPtr clock = stream.clock;
  const uint32_t last = stream.last;
  run_clock(all, lock, clock, stream.index);
  run_until(all, lock, stream, last);
  host_waited(all, clock, stream.index, last);
}

WorkId add(Order& all, Stream& stream, const char* name, std::function<void(WorkId)> run) {
  advance(all, stream);
  const WorkId id = all.works.add({.stream = stream.index,
                                   .place = ++stream.last,
                                   .name = all.names.insert(name).first->c_str(),
                                   .before = stream.clock});
  stream.queue.push_back({id, std::move(run)});
  return id;
}

Event* find_event(Order& all, void* handle) {
  const auto found = all.events.find(handle);
  return found == all.events.end() ? nullptr : found->second.get();
}

}  // namespace

WorkId enqueue(void* handle, const char* name, std::function<void(WorkId)> run) {
  Order& all = order();
  const Lock lock(all.mutex);
  Stream* stream = find_stream(all, handle);
  if (!stream) {
    report(FindingKind::invalid_call, {.kernel = name, .file = {}}, "the stream does not exist, or was destroyed");
    stream = all.streams[0].get();
  }
  return add(all, *stream, name, std::move(run));
}

void synchronize(void* handle) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  if (Stream* stream = find_stream(all, handle)) synchronize(all, lock, *stream);
}

void synchronize_all() {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  for (size_t i = 0; i < all.streams.size(); ++i) synchronize(all, lock, *all.streams[i]);
}

void run_to(WorkId work) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  run_until(all, lock, *all.streams[all.works[work].stream], all.works[work].place);
}

void run_all() {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  for (size_t i = 0; i < all.streams.size(); ++i) run_until(all, lock, *all.streams[i], all.streams[i]->last);
}

bool happens_before(WorkId earlier, WorkId later) {
  const Works& works = order().works;
  const WorkInfo &a = works[earlier], &b = works[later];
  if (a.stream == b.stream) return a.place <= b.place;
  return b.before && a.stream < b.before->size() && a.place <= (*b.before)[a.stream];
}

WorkId first_unordered(WorkId work) {
  // What is before a work is before those that follow it on its stream: begin where the last one's search ended.
  static std::unordered_map<uint32_t, WorkId> last;  // by stream
  constexpr WorkId window = 4096;
  WorkId& first = last[order().works[work].stream];
  first = std::max(first, work > window ? work - window : 1);
  while (first < work && happens_before(first, work)) ++first;
  return first;
}

std::string describe_work(WorkId work) {
  const WorkInfo& info = order().works[work];
  return std::string(info.name) +
         (info.stream == 0 ? " on the default stream" : " on stream " + std::to_string(info.stream));
}

void* create_stream(bool blocking) {
  Order& all = order();
  const Lock lock(all.mutex);
  const auto index = static_cast<uint32_t>(all.streams.size());
  all.streams.emplace_back(new Stream{.index = index, .blocking = blocking, .queue = {}, .clock = {}});
  void* handle = all.streams.back().get();
  all.live.emplace(handle, index);
  return handle;
}

bool destroy_stream(void* handle) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  Stream* stream = find_stream(all, handle);
  if (!stream || stream->index == 0) return false;
  run_until(all, lock, *stream, stream->last);
  all.live.erase(handle);
  return true;
}

bool is_stream(void* handle) {
  Order& all = order();
  const Lock lock(all.mutex);
  return find_stream(all, handle) != nullptr;
}

bool idle(void* handle) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  Stream* stream = find_stream(all, handle);
  if (!stream) return true;
  const bool nothing_left = stream->done == stream->last;
  if (nothing_left)
    synchronize(all, lock, *stream);
  else
    run_until(all, lock, *stream, stream->last);
  return nothing_left;
}

void* create_event(bool timing) {
  Order& all = order();
  const Lock lock(all.mutex);
  auto event = std::make_unique<Event>(Event{.timing = timing, .before = {}, .moment = {}});
  void* handle = event.get();
  all.events.emplace(handle, std::move(event));
  return handle;
}

bool destroy_event(void* handle) {
  Order& all = order();
  const Lock lock(all.mutex);
  return all.events.erase(handle) == 1;
}

bool is_event(void* handle) {
  Order& all = order();
  const Lock lock(all.mutex);
  return find_event(all, handle) != nullptr;
}

bool record_event(void* handle, void* stream_handle) {
  Order& all = order();
  const Lock lock(all.mutex);
  Event* event = find_event(all, handle);
  Stream* stream = find_stream(all, stream_handle);
  if (!event || !stream) return false;
  if (event->timing) {
    event->moment = std::make_shared<std::atomic<Moment>>();
    const auto set_moment = [moment = event->moment](WorkId) { *moment = std::chrono::steady_clock::now(); };
    add(all, *stream, "event", set_moment);
  }
  advance(all, *stream);
  event->recorded = true;
  event->stream = stream->index;
  event->place = stream->last;
  event->before = stream->clock;
  return true;
}

bool wait_event(void* stream_handle, void* handle) {
  Order& all = order();
  const Lock lock(all.mutex);
  const Event* event = find_event(all, handle);
  Stream* stream = find_stream(all, stream_handle);
  if (!event || !stream) return false;
  if (event->recorded) merge(stream->clock, event->before, event->stream, event->place);
  return true;
}

bool synchronize_event(void* handle) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  const Event* found = find_event(all, handle);
  if (!found || !found->recorded) return found != nullptr;
  const Event event = *found;  // another thread may destroy it while work runs
  run_event(all, lock, event);
  host_waited(all, event.before, event.stream, event.place);
  return true;
}

bool event_idle(void* handle) {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  Lock lock(all.mutex);
  const Event* found = find_event(all, handle);
  if (!found || !found->recorded) return true;
  const Event event = *found;
  bool nothing_left = all.streams[event.stream]->done >= event.place;
  for (size_t i = 0; event.before && i < event.before->size(); ++i)
    nothing_left = nothing_left && (i == event.stream || all.streams[i]->done >= (*event.before)[i]);
  if (nothing_left)
    host_waited(all, event.before, event.stream, event.place);
  else
    run_event(all, lock, event);
  return nothing_left;
}

bool elapsed(void* from, void* to, float& milliseconds) {
  Order& all = order();
  const Lock lock(all.mutex);
  const Event *first = find_event(all, from), *second = find_event(all, to);
  if (!first || !second || !first->timing || !second->timing || !first->moment || !second->moment) return false;
  const Moment a = *first->moment, b = *second->moment;
  if (a == Moment{} || b == Moment{}) return false;
  milliseconds = std::chrono::duration<float, std::milli>(b - a).count();
  return true;
}

size_t live_streams() {
  Order& all = order();
  const Lock lock(all.mutex);
  return all.live.size();
}

size_t live_events() {
  Order& all = order();
  const Lock lock(all.mutex);
  return all.events.size();
}

void lose_context() { order().lost = true; }
bool context_lost() { return order().lost; }

void reset_context() {
  Order& all = order();
  const std::lock_guard execution(all.execution);
  const Lock lock(all.mutex);
  for (const auto& stream : all.streams) {
    stream->queue.clear();
    stream->done = stream->last;
  }
  all.live.clear();
  all.events.clear();
  all.lost = false;
}

}  // namespace softgpu

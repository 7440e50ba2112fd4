#include "runtime/side_collectives.h"

#include <omp.h>

#include "runtime/watchdog.h"

namespace notellm {

SideCollectives::SideCollectives(Device device, Communicator& group)
    : group_(group),
      stream_(device),
      ready_(device),
      done_{Event(device), Event(device), Event(device), Event(device)} {
  if (device != Device::cpu || group.size() == 1 || group.on_shared_memory()) return;
  own_group_.emplace(group.duplicate());
  thread_ = std::thread([this] { run(); });
}

// While an error passes through, the other ranks may never come: what is under way is given up.
SideCollectives::~SideCollectives() {
  if (!thread_.joinable()) return;
  stop_ = std::uncaught_exceptions() > 0;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void SideCollectives::run() {
  omp_set_num_threads(1);
  run_beside_main_thread(stop_);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || !waiting_.empty(); });
    if (stop_ || waiting_.empty()) return;
    const Work work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      work(stream_, *own_group_);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    ++finished_;
    if (error && !error_) error_ = error;
    changed_.notify_all();
    if (error_) return;  // the other ranks' order and this one's have parted
  }
}

int64_t SideCollectives::begin(Stream& stream, Work work) {
  ++begun_;
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      if (error_) std::rethrow_exception(error_);
      waiting_.push_back(std::move(work));
    }
    changed_.notify_all();
    return begun_;
  }
  ready_.record(stream);
  ready_.wait(stream_);
  work(stream_, group_);
  done_[begun_ % events].record(stream_);
  return begun_;
}

void SideCollectives::wait(Stream& stream, const char* name, int64_t number) {
  if (number == 0) return;
  if (!thread_.joinable()) return done_[number % events].wait(stream);
  std::unique_lock lock(mutex_);
  if (finished_ < number && !error_) {
    const WatchedCollective watched(name, group_.group());
    changed_.wait(lock, [&] { return finished_ >= number || error_; });
  }
  if (error_) std::rethrow_exception(error_);
}

}  // namespace notellm

// The threads that interpret, made once.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace softgpu {

class Helpers {
 public:
  // Calls `work` on `count` threads, this one among them, and returns when all have. One call at a time.
  void run(size_t count, const std::function<void()>& work) {
    {
      const std::lock_guard lock(mutex_);
      for (; made_ + 1 < count; ++made_) std::thread([this] { help(); }).detach();
      work_ = &work;
      wanted_ = running_ = count - 1;
    }
    if (count > 1) wake_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return wanted_ > 0; });
      --wanted_;
      const auto* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* work_ = nullptr;
  size_t made_ = 0, wanted_ = 0, running_ = 0;
};

}  // namespace softgpu

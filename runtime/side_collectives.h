// Collectives of a group that run while the caller computes: gradients are summed, weights gathered, beside the layers.
//
//     on CUDA                              on a stream of their own (NCCL)
//     on the CPU, ranks pass messages      in a thread of their own, which sleeps while it waits
//     … ranks share memory, or one rank    at once: there the cores themselves pass the data, and nothing is gained
//
// All ranks begin the same work in the same order.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "runtime/communicator.h"

namespace notellm {

class SideCollectives {
 public:
  // Where a thread is needed, itself a collective of the group. The group must live as long as this.
  SideCollectives(Device device, Communicator& group);
  ~SideCollectives();
  SideCollectives(const SideCollectives&) = delete;
  SideCollectives& operator=(const SideCollectives&) = delete;

  // Whether what is begun goes on by itself.
  bool beside() const { return stream_.on_gpu() || thread_.joinable(); }

  using Work = std::function<void(Stream&, Communicator&)>;
  // After all that `stream` has been given, and after what was begun before: work(stream, group), which uses that
  // stream and that group alone. Returns its number, from 1.
  int64_t begin(Stream& stream, Work work);
  // What `stream` is given from now on comes after the work of that number; 0: nothing to wait for. The watchdog sees a
  // collective of this name. Throws what work has thrown.
  void wait(Stream& stream, const char* name, int64_t number);

 private:
  void run();

  Communicator& group_;
  Stream stream_;
  int64_t begun_ = 0;
  // On CUDA.
  Event ready_;
  static constexpr int events = 4;  // work older than so many is waited for with the newer
  std::array<Event, events> done_;
  // On the CPU, by messages.
  std::optional<Communicator> own_group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> waiting_;
  int64_t finished_ = 0;
  std::exception_ptr error_;
  bool closing_ = false;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace notellm

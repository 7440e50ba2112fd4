// What a communicator is made of: MPI, and what ranks of one host share. For runtime/communicator.cpp alone.
#pragma once

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <mpi.h>

#include <mutex>

#include "runtime/communicator.h"
#include "runtime/host_exchange.h"
#include "runtime/nccl.h"
#include "runtime/watchdog.h"

namespace notellm {

// MPI's life: from the first world communicator to the last.
class Mpi {
 public:
  static std::shared_ptr<Mpi> get();
  Mpi();
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  ~Mpi();

 private:
  void share_states();
  void answer(const RankState& own) const;
  void ask(std::span<RankState> of_rank, const std::function<bool()>& wait) const;

  int rank_ = 0;
  SharedMemory states_;            // of the watchdogs
  MPI_Comm mail_ = MPI_COMM_NULL;  // theirs, to those of other hosts
};

struct Communicator::State {
  struct Part {
    char* data;
    int64_t bytes;
  };

  std::shared_ptr<Mpi> mpi;  // none: one rank without MPI
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  int world_rank = 0;                  // what messages call this rank
  std::string group = "all ranks";     // what messages call these ranks
  std::unique_ptr<HostExchange> host;  // where all of them are on one host
  // One count of a communicator and the groups split from it, some of which other threads use.
  struct Sent {
    std::mutex mutex;
    std::map<std::string, int64_t> of_name;
  };
  std::shared_ptr<Sent> sent = std::make_shared<Sent>();
  int64_t bytes_in_group = 0;  // of them those of this group
  std::vector<char> scratch;
  std::shared_ptr<gpu::Nccl> nccl;  // from the first collective of device memory on

  ~State() {
    nccl.reset();
    if (mpi && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm);
  }
  // The state of a group of some of these ranks, from its MPI communicator.
  std::unique_ptr<State> derive(MPI_Comm of, std::string called) const;
  void look_around();
  void check(int code, const char* name) const;
  void add(const char* name, int64_t bytes) {
    const std::lock_guard lock(sent->mutex);
    sent->of_name[name] += bytes;
    bytes_in_group += bytes;
  }
  // To each other rank so many bytes; of a reduce-scatter, its rows.
  void count(const char* name, int64_t bytes) {
    if (size > 1) add(name, bytes * (size - 1));
  }
  void count_reduce_scatter(const char* name, const Tensor& all, const Tensor& mine) {
    if (size > 1) add(name, all.bytes() - mine.bytes());
  }
  void count_all_reduce(const char* name, const Tensor& t) {
    if (size > 1) add(name, all_reduce_bytes(t.size(), size_of(t.dtype), rank, size));
  }
  // Of a thread that runs beside the main one.
  static thread_local const std::atomic<bool>* stop;
  static int wait(MPI_Request& request, MPI_Status& status);
  void exchange(const char* name, const std::vector<Part>& sends, const std::vector<Part>& receives) const;
  void finish(const char* name, std::vector<MPI_Request>& requests, const std::vector<int>& expected) const;
  void gather_blocks(const char* name, const char* mine, const std::vector<int64_t>& begins, int64_t unit,
                     char* all) const;
  void gather_on_host(const char* name, const char* mine, const std::vector<int64_t>& begins, int64_t unit,
                      char* all) const;
  std::vector<const char*> pass(const char* name, const std::vector<Part>& sends);
  std::vector<const char*> pass_on_host(const char* name, const std::vector<Part>& sends, int64_t room, uint64_t shape);
  void reduce_blocks(const char* name, char* all, const std::vector<int64_t>& begins, DType dtype, char* mine);
  void broadcast(const char* name, char* data, int64_t bytes, int root) const;
};

}  // namespace notellm

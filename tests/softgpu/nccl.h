// What the two files of the stand-in libnccl share.
#pragma once

#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <span>

#include "tests/softgpu/memory.h"

namespace softgpu::nccl {

struct Comm {
  MPI_Comm mpi = MPI_COMM_NULL;  // null: one rank
  int rank = 0, size = 1;
  std::atomic<ncclResult_t> error = ncclSuccess;  // what ncclCommGetAsyncError says; then nothing runs any more
};

enum class Kind : int64_t { all_reduce, reduce_scatter, all_gather, broadcast, send, receive };
struct Call {
  Kind kind;
  const void* from;
  void* to;
  size_t count;  // as in NCCL: of what each rank sends, or, for reduce_scatter, receives
  ncclDataType_t type;
  ncclRedOp_t op = ncclSum;
  int peer = 0;  // or root
};
const char* name_of(Kind kind);
// 0: a type that softgpu does not know.
size_t bytes_of(ncclDataType_t type);
bool can_reduce(ncclDataType_t type, ncclRedOp_t op);
inline bool is_collective(Kind kind) { return kind != Kind::send && kind != Kind::receive; }

// What the call reads and writes on this rank; 0 bytes: nothing.
size_t bytes_read(const Comm& comm, const Call& call);
size_t bytes_written(const Comm& comm, const Call& call);

// Does the call together with the other ranks. Ranks whose calls do not fit each other find it (invalid_call) and leave
// their memory alone; the communicator then has an error. Sums and maxima are in the order of ranks; those of bf16 in
// f32, rounded once.
void run_collective(Comm& comm, const Call& call, WorkId work);
// All sends and receives of a group at once.
void run_messages(Comm& comm, std::span<const Call> calls, WorkId work);

}  // namespace softgpu::nccl

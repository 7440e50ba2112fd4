// The stand-in libnccl.so.2: NCCL's calls, queued on softgpu's streams and done over MPI when the stream runs.
//
// NCCL runs the calls of a process in the order in which they were made; so does this, whatever streams they are on
// and whichever of these the host waits for first. But nothing runs before this rank waits: ranks that wait for their
// streams in another order than they talk over MPI block each other, which they would not with NCCL.
#include "tests/softgpu/nccl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "tests/softgpu/at_end.h"
#include "tests/softgpu/streams.h"

struct ncclComm {
  std::shared_ptr<softgpu::nccl::Comm> comm = std::make_shared<softgpu::nccl::Comm>();
  softgpu::WorkId last = 0;  // its newest work
};

namespace softgpu::nccl {
namespace {

constexpr uint64_t id_magic = 0x736f6674677075;
constexpr int first_tag = 1000, tags = 10000;

struct Id {  // the beginning of an ncclUniqueId
  uint64_t magic;
  int creator;  // rank in MPI_COMM_WORLD
  int serial;
};

struct State {
  std::recursive_mutex mutex;
  std::vector<std::unique_ptr<ncclComm>> comms;
  WorkId last = 0;  // the newest work of all communicators
  int ids = 0;
  int64_t collectives = 0;
};
State& state() {
  static State& all = *new State;
  return all;
}

struct Grouped {
  ncclComm* comm;
  Call call;
  void* stream;
};
thread_local int group_depth = 0;
thread_local std::vector<Grouped> group;

bool mpi_runs() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started && !ended;
}

ncclResult_t refuse(const char* call, const std::string& why, ncclResult_t status = ncclInvalidArgument) {
  Place place;
  place.kernel = call;
  report(FindingKind::invalid_call, place, why);
  return status;
}

bool known(ncclComm* comm) {
  const std::lock_guard lock(state().mutex);
  return std::ranges::any_of(state().comms, [&](const auto& live) { return live.get() == comm; });
}

// Queues work that runs after all earlier work of NCCL's.
void queue(ncclComm* handle, void* stream, const char* name, std::function<void(Comm&, WorkId)> run) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto chained = [comm = handle->comm, previous = all.last, run = std::move(run)](WorkId work) {
    if (previous != 0) run_to(previous);
    if (comm->error == ncclSuccess) run(*comm, work);
  };
  all.last = handle->last = enqueue(stream, name, chained);
}

// Collectives of a group one after the other, then its messages, all at once.
ncclResult_t queue_group() {
  std::vector<Grouped> calls;
  calls.swap(group);
  for (const Grouped& grouped : calls)
    if (is_collective(grouped.call.kind))
      queue(grouped.comm, grouped.stream, name_of(grouped.call.kind),
            [call = grouped.call](Comm& comm, WorkId work) { run_collective(comm, call, work); });
  std::vector<Call> messages;
  const Grouped* first = nullptr;
  for (const Grouped& grouped : calls) {
    if (is_collective(grouped.call.kind)) continue;
    if (!first) first = &grouped;
    if (grouped.comm != first->comm || grouped.stream != first->stream)
      return refuse("ncclGroupEnd", "softgpu knows sends and receives of a group on one communicator and stream only");
    messages.push_back(grouped.call);
  }
  if (first)
    queue(first->comm, first->stream, "ncclSend and ncclRecv",
          [messages](Comm& comm, WorkId work) { run_messages(comm, messages, work); });
  return ncclSuccess;
}

// SOFTGPU_NCCL_FAIL=N: this rank's Nth collective fails.
bool is_to_fail() {
  const char* text = std::getenv("SOFTGPU_NCCL_FAIL");
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return ++all.collectives == (text ? std::atoll(text) : 0);
}

ncclResult_t submit(ncclComm* handle, const Call& call, void* stream) {
  const char* name = name_of(call.kind);
  if (!known(handle)) return refuse(name, "the communicator does not exist, or was destroyed");
  Comm& comm = *handle->comm;
  if (bytes_of(call.type) == 0) return refuse(name, "a type that softgpu does not know");
  if ((call.kind == Kind::all_reduce || call.kind == Kind::reduce_scatter) && !can_reduce(call.type, call.op))
    return refuse(name, "a type or operation that softgpu cannot reduce with");
  if (call.peer < 0 || call.peer >= comm.size) return refuse(name, "no rank " + std::to_string(call.peer));
  if (!is_stream(stream)) return refuse(name, "the stream does not exist, or was destroyed");
  if (bytes_read(comm, call) > 0 && !is_device_address(reinterpret_cast<uint64_t>(call.from)))
    return refuse(name, "what it sends is not in device memory");
  if (bytes_written(comm, call) > 0 && !is_device_address(reinterpret_cast<uint64_t>(call.to)))
    return refuse(name, "what it receives is not in device memory");
  if (!is_collective(call.kind) && comm.mpi == MPI_COMM_NULL)
    return refuse(name, "a message of the only rank to itself");
  if (is_collective(call.kind) && is_to_fail()) comm.error = ncclSystemError;
  if (comm.error != ncclSuccess) return comm.error;
  group.push_back({handle, call, stream});
  return group_depth > 0 ? ncclSuccess : queue_group();
}

// The communicator of `size` processes, the one behind `id` among them: these tell it their ranks, and it tells them
// who they are.
MPI_Comm meet(const Id& id, int rank, int size) {
  const int tag = first_tag + id.serial % tags;
  int mine[2] = {rank, 0};
  MPI_Comm_rank(MPI_COMM_WORLD, &mine[1]);
  std::vector<int> members(static_cast<size_t>(size), -1);
  if (mine[1] != id.creator) {
    MPI_Send(mine, 2, MPI_INT, id.creator, tag, MPI_COMM_WORLD);
    MPI_Recv(members.data(), size, MPI_INT, id.creator, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  } else {
    members[rank] = mine[1];
    for (int i = 1; i < size; ++i) {
      int other[2];
      MPI_Recv(other, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      if (other[0] >= 0 && other[0] < size) members[other[0]] = other[1];
    }
    for (int r = 0; r < size; ++r)
      if (r != rank && members[r] >= 0) MPI_Send(members.data(), size, MPI_INT, members[r], tag, MPI_COMM_WORLD);
  }
  if (std::ranges::count(members, -1) > 0) return MPI_COMM_NULL;
  MPI_Group world, chosen;
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_incl(world, size, members.data(), &chosen);
  MPI_Comm_create_group(MPI_COMM_WORLD, chosen, tag, &comm);
  MPI_Group_free(&chosen);
  MPI_Group_free(&world);
  return comm;
}

// Forgets a communicator; its queued work is done first, or never.
ncclResult_t end(ncclComm* handle, bool finish) {
  if (!known(handle)) return refuse("ncclCommDestroy", "the communicator does not exist, or was destroyed");
  if (finish && handle->last != 0) run_to(handle->last);
  if (!finish) handle->comm->error = ncclInvalidUsage;
  if (finish && handle->comm->mpi != MPI_COMM_NULL && handle->comm->error == ncclSuccess && mpi_runs())
    MPI_Comm_free(&handle->comm->mpi);
  State& all = state();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.comms, [&](const auto& live) { return live.get() == handle; });
  return ncclSuccess;
}

void look_for_leaks() {
  Place place;
  place.kernel = "NCCL communicators";
  if (const size_t count = state().comms.size())
    report(FindingKind::leak, place, std::to_string(count) + " were not destroyed");
}
__attribute__((constructor)) void register_checks() { end_checks().push_back(look_for_leaks); }

}  // namespace

const char* name_of(Kind kind) {
  constexpr const char* names[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
                                   "ncclBroadcast", "ncclSend",          "ncclRecv"};
  return names[static_cast<int>(kind)];
}

size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

bool can_reduce(ncclDataType_t type, ncclRedOp_t op) { return bytes_of(type) > 1 && (op == ncclSum || op == ncclMax); }

size_t bytes_read(const Comm& comm, const Call& call) {
  const size_t bytes = call.count * bytes_of(call.type);
  if (call.kind == Kind::reduce_scatter) return bytes * static_cast<size_t>(comm.size);
  if (call.kind == Kind::broadcast) return comm.rank == call.peer ? bytes : 0;
  return call.kind == Kind::receive ? 0 : bytes;
}

size_t bytes_written(const Comm& comm, const Call& call) {
  const size_t bytes = call.count * bytes_of(call.type);
  if (call.kind == Kind::all_gather) return bytes * static_cast<size_t>(comm.size);
  return call.kind == Kind::send ? 0 : bytes;
}

}  // namespace softgpu::nccl

using namespace softgpu;
using namespace softgpu::nccl;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* unique_id) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  Id id{id_magic, 0, all.ids++};
  if (mpi_runs()) MPI_Comm_rank(MPI_COMM_WORLD, &id.creator);
  *unique_id = {};
  std::memcpy(unique_id, &id, sizeof id);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId unique_id, int rank) {
  Id id;
  std::memcpy(&id, &unique_id, sizeof id);
  if (!comm || id.magic != id_magic || rank < 0 || rank >= size)
    return refuse("ncclCommInitRank",
                  "not an id of ncclGetUniqueId, or rank " + std::to_string(rank) + " of " + std::to_string(size));
  auto made = std::make_unique<ncclComm>();
  made->comm->rank = rank;
  made->comm->size = size;
  if (size > 1) {
    if (!mpi_runs()) return refuse("ncclCommInitRank", "softgpu needs MPI to be initialised", ncclSystemError);
    made->comm->mpi = meet(id, rank, size);
    if (made->comm->mpi == MPI_COMM_NULL) return refuse("ncclCommInitRank", "two processes have the same rank");
  }
  State& all = state();
  const std::lock_guard lock(all.mutex);
  *comm = made.get();
  all.comms.push_back(std::move(made));
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
  return ncclCommInitRank(comm, size, id, rank);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (!known(comm)) return refuse("ncclCommFinalize", "the communicator does not exist, or was destroyed");
  if (comm->last != 0) run_to(comm->last);
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return end(comm, true); }
ncclResult_t ncclCommAbort(ncclComm_t comm) { return end(comm, false); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (!known(comm)) return refuse("ncclCommGetAsyncError", "the communicator does not exist, or was destroyed");
  *error = comm->comm->error;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  *count = comm->comm->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  *rank = comm->comm->rank;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "unknown result code";
  }
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return refuse("ncclGroupEnd", "without ncclGroupStart", ncclInvalidUsage);
  return --group_depth > 0 ? ncclSuccess : queue_group();
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return submit(comm, {Kind::all_reduce, from, to, count, type, op}, stream);
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  return submit(comm, {Kind::reduce_scatter, from, to, count, type, op}, stream);
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return submit(comm, {Kind::all_gather, from, to, count, type}, stream);
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return submit(comm, {Kind::broadcast, from, to, count, type, ncclSum, root}, stream);
}
ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return submit(comm, {Kind::send, from, nullptr, count, type, ncclSum, peer}, stream);
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return submit(comm, {Kind::receive, nullptr, to, count, type, ncclSum, peer}, stream);
}

}  // extern "C"

#include "runtime/nccl.h"

#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

#include "runtime/gpu.h"
#include "runtime/watchdog.h"

namespace notellm::gpu {
namespace {

ncclComm_t native(void* comm) { return static_cast<ncclComm_t>(comm); }
cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::f16:
    case DType::bf16_panels:
    case DType::bf16_gated_panels:
      break;
  }
  NOTELLM_CHECK(false, "no NCCL type");
}

// Those alive, and what was enqueued last: collectives are enqueued by one thread.
std::vector<const Nccl*> alive;
LastCollective last;

size_t count_of(std::span<const int64_t> begins, int rank) {
  return static_cast<size_t>(begins[rank + 1] - begins[rank]);
}

char* element(const Tensor& t, int64_t i) { return static_cast<char*>(t.data) + i * size_of(t.dtype); }

// Whether all ranks have the same number of elements.
bool even(std::span<const int64_t> begins) {
  for (size_t r = 2; r < begins.size(); ++r)
    if (begins[r] - begins[r - 1] != begins[1] - begins[0]) return false;
  return true;
}

}  // namespace

std::string Nccl::make_id() {
  ncclUniqueId id;
  const ncclResult_t status = ncclGetUniqueId(&id);
  if (status != ncclSuccess) fail(ErrorKind::peer, "NCCL cannot start: {}", ncclGetErrorString(status));
  return std::string(id.internal, sizeof id.internal);
}

Nccl::Nccl(const std::string& id, int rank, int size, const std::string& group)
    : group_(group), rank_(rank), size_(size) {
  constexpr const char* name = "start of NCCL";
  const WatchedCollective watched(name, group);
  ncclUniqueId unique;
  NOTELLM_CHECK(id.size() == sizeof unique.internal, "an NCCL id of {} bytes", id.size());
  std::memcpy(unique.internal, id.data(), id.size());
  ncclComm_t comm = nullptr;
  check(ncclCommInitRank(&comm, size, unique, rank), name);
  native_ = comm;
  alive.push_back(this);
}

// While an error passes through, the other ranks may never come: nothing is waited for.
Nccl::~Nccl() {
  std::erase(alive, this);
  if (alive.empty()) last = {};
  if (std::uncaught_exceptions() == 0)
    ncclCommDestroy(native(native_));
  else
    ncclCommAbort(native(native_));
}

void Nccl::check(int status, const char* name) const {
  if (status == ncclSuccess || status == ncclInProgress) return;
  fail(ErrorKind::peer,
       "{} failed in NCCL: {}; look at the first error of the other ranks, or run again with NCCL_DEBUG=WARN",
       collective_text(name, group_), ncclGetErrorString(static_cast<ncclResult_t>(status)));
}

void Nccl::begin(const char* name) {
  last_ = name;
  last = {name, group_};
}

void Nccl::all_reduce_sum(Stream& stream, const char* name, Tensor t) {
  const WatchedCollective watched(name, group_);
  begin(name);
  check(ncclAllReduce(t.data, t.data, static_cast<size_t>(t.size()), type_of(t.dtype), ncclSum, native(native_),
                      native(stream)),
        name);
}

// Ranks nearly always have the same number of rows, for which NCCL has its fastest algorithms. Otherwise each rank's
// block goes out by itself, in one group, so that no more bytes are sent and no memory is needed for padding.
void Nccl::all_gather(Stream& stream, const char* name, Tensor mine, std::span<const int64_t> begins, Tensor all) {
  const WatchedCollective watched(name, group_);
  begin(name);
  const ncclDataType_t type = type_of(all.dtype);
  if (even(begins))
    return check(ncclAllGather(mine.data, all.data, count_of(begins, rank_), type, native(native_), native(stream)),
                 name);
  check(ncclGroupStart(), name);
  for (int r = 0; r < size_; ++r)
    if (const size_t count = count_of(begins, r); count > 0)
      check(ncclBroadcast(r == rank_ ? mine.data : element(all, begins[r]), element(all, begins[r]), count, type, r,
                          native(native_), native(stream)),
            name);
  check(ncclGroupEnd(), name);
}

// With unequal rows, which are rare, everyone gets the whole sum: twice the bytes, but no memory for padding.
void Nccl::reduce_scatter(Stream& stream, const char* name, Tensor all, std::span<const int64_t> begins, Tensor mine) {
  if (!even(begins)) {
    all_reduce_sum(stream, name, all);
    if (mine.data == element(all, begins[rank_])) return;
    return copy(stream, element(all, begins[rank_]), mine.data, mine.bytes());
  }
  const WatchedCollective watched(name, group_);
  begin(name);
  check(ncclReduceScatter(all.data, mine.data, count_of(begins, rank_), type_of(all.dtype), ncclSum, native(native_),
                          native(stream)),
        name);
}

void check_collectives() {
  for (const Nccl* nccl : alive) {
    ncclResult_t failed = ncclSuccess;
    nccl->check(ncclCommGetAsyncError(native(nccl->native_), &failed), nccl->last_);
    nccl->check(failed, nccl->last_);
  }
}

LastCollective last_collective() { return last; }

std::string nccl_version() {
  int version = 0;
  ncclGetVersion(&version);
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace notellm::gpu

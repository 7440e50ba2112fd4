// The work of the stand-in libnccl, over MPI.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/softgpu/nccl.h"
#include "tests/softgpu/streams.h"

namespace softgpu::nccl {
namespace {

constexpr size_t piece_bytes = 4 << 20;
constexpr size_t message_bytes = 1 << 30;  // MPI counts in int
constexpr int tag_count = 1, tag_data = 2;

struct Bf16 {
  uint16_t bits;
};
float widen(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
Bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest even
}
template <class T>
T widen(T x) {
  return x;
}

template <class T>
T combine(T a, T b, ncclRedOp_t op) {
  if (op == ncclSum) return a + b;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(a, b);
  else
    return std::max(a, b);
}

// to[i] := parts[0][i] op parts[1][i] op …, where parts lie one after the other.
template <class T>
void reduce(const std::byte* parts, int ranks, size_t count, ncclRedOp_t op, std::byte* to) {
  const auto at = [&](int rank, size_t i) {
    T x;
    std::memcpy(&x, parts + (rank * count + i) * sizeof(T), sizeof(T));
    return widen(x);
  };
  for (size_t i = 0; i < count; ++i) {
    auto sum = at(0, i);
    for (int r = 1; r < ranks; ++r) sum = combine(sum, at(r, i), op);
    if constexpr (std::is_same_v<T, Bf16>) {
      const Bf16 rounded = narrow(sum);
      std::memcpy(to + i * sizeof(T), &rounded, sizeof(T));
    } else {
      std::memcpy(to + i * sizeof(T), &sum, sizeof(T));
    }
  }
}

void reduce(ncclDataType_t type, const std::byte* parts, int ranks, size_t count, ncclRedOp_t op, std::byte* to) {
  switch (type) {
    case ncclFloat32:
      return reduce<float>(parts, ranks, count, op, to);
    case ncclFloat64:
      return reduce<double>(parts, ranks, count, op, to);
    case ncclBfloat16:
      return reduce<Bf16>(parts, ranks, count, op, to);
    case ncclInt32:  // sums wrap, in unsigned numbers without undefined behaviour
      return op == ncclSum ? reduce<uint32_t>(parts, ranks, count, op, to)
                           : reduce<int32_t>(parts, ranks, count, op, to);
    default:  // int64, as can_reduce says
      return op == ncclSum ? reduce<uint64_t>(parts, ranks, count, op, to)
                           : reduce<int64_t>(parts, ranks, count, op, to);
  }
}

Place place_of(const Call& call) {
  Place place;
  place.kernel = name_of(call.kind);
  return place;
}

// Whether this rank may touch its memory; records that it does.
bool record(const Comm& comm, const Call& call, WorkId work) {
  const size_t reads = bytes_read(comm, call), writes = bytes_written(comm, call);
  bool fine = true;
  if (reads > 0) fine = access_read(reinterpret_cast<uint64_t>(call.from), reads, work, place_of(call)) && fine;
  if (writes > 0) fine = access_write(reinterpret_cast<uint64_t>(call.to), writes, work, place_of(call)) && fine;
  return fine;
}

using Header = std::array<int64_t, 6>;

std::string text_of(const Header& h) {
  if (h[0] == 0) return "a call with illegal memory";
  return std::string(name_of(static_cast<Kind>(h[1]))) + " of " + std::to_string(h[2]) + " elements of type " +
         std::to_string(h[3]) + ", operation " + std::to_string(h[4]) + ", root " + std::to_string(h[5]);
}

// All ranks tell what they are about to do. False on all of them: it does not fit.
bool agree(Comm& comm, const Call& call, bool fine) {
  if (comm.size == 1) return fine;
  const Header mine{fine,     static_cast<int64_t>(call.kind), static_cast<int64_t>(call.count), call.type, call.op,
                    call.peer};
  std::vector<Header> all(static_cast<size_t>(comm.size));
  MPI_Allgather(mine.data(), 6, MPI_INT64_T, all.data(), 6, MPI_INT64_T, comm.mpi);
  for (int r = 0; r < comm.size; ++r)
    if (all[r] != all[0] || all[r][0] == 0) {
      report(FindingKind::invalid_call, place_of(call),
             "the ranks' calls differ: rank 0 has " + text_of(all[0]) + "; rank " + std::to_string(r) + " has " +
                 text_of(all[r]));
      return false;
    }
  return true;
}

std::byte* host(const void* device) { return host_view(reinterpret_cast<uint64_t>(device)); }

void all_reduce(const Comm& comm, const Call& call, size_t unit) {
  std::vector<std::byte> parts;
  for (size_t at = 0; at < call.count; at += piece_bytes / unit) {
    const size_t count = std::min(piece_bytes / unit, call.count - at);
    const int bytes = static_cast<int>(count * unit);
    parts.resize(static_cast<size_t>(comm.size) * count * unit);
    MPI_Allgather(host(call.from) + at * unit, bytes, MPI_BYTE, parts.data(), bytes, MPI_BYTE, comm.mpi);
    reduce(call.type, parts.data(), comm.size, count, call.op, host(call.to) + at * unit);
  }
}

void reduce_scatter(const Comm& comm, const Call& call, size_t unit) {
  std::vector<std::byte> sends, parts;
  for (size_t at = 0; at < call.count; at += piece_bytes / unit) {
    const size_t count = std::min(piece_bytes / unit, call.count - at);
    const int bytes = static_cast<int>(count * unit);
    sends.resize(static_cast<size_t>(comm.size) * count * unit);
    parts.resize(sends.size());
    for (int r = 0; r < comm.size; ++r)
      std::memcpy(sends.data() + r * count * unit, host(call.from) + (r * call.count + at) * unit, count * unit);
    MPI_Alltoall(sends.data(), bytes, MPI_BYTE, parts.data(), bytes, MPI_BYTE, comm.mpi);
    reduce(call.type, parts.data(), comm.size, count, call.op, host(call.to) + at * unit);
  }
}

void all_gather(const Comm& comm, const Call& call, size_t unit) {
  std::vector<std::byte> parts;
  for (size_t at = 0; at < call.count; at += piece_bytes / unit) {
    const size_t count = std::min(piece_bytes / unit, call.count - at);
    const int bytes = static_cast<int>(count * unit);
    parts.resize(static_cast<size_t>(comm.size) * count * unit);
    MPI_Allgather(host(call.from) + at * unit, bytes, MPI_BYTE, parts.data(), bytes, MPI_BYTE, comm.mpi);
    for (int r = 0; r < comm.size; ++r)
      std::memcpy(host(call.to) + (r * call.count + at) * unit, parts.data() + r * count * unit, count * unit);
  }
}

void broadcast(const Comm& comm, const Call& call, size_t unit) {
  if (comm.rank == call.peer && call.to != call.from) std::memmove(host(call.to), host(call.from), call.count * unit);
  for (size_t at = 0; at < call.count * unit; at += message_bytes) {
    const size_t bytes = std::min(message_bytes, call.count * unit - at);
    MPI_Bcast(host(call.to) + at, static_cast<int>(bytes), MPI_BYTE, call.peer, comm.mpi);
  }
}

}  // namespace

void run_collective(Comm& comm, const Call& call, WorkId work) {
  if (!agree(comm, call, record(comm, call, work))) {
    comm.error = ncclInvalidUsage;
    return;
  }
  const size_t unit = bytes_of(call.type);
  if (comm.size == 1) {
    if (call.to != call.from && call.count > 0) std::memmove(host(call.to), host(call.from), call.count * unit);
    return;
  }
  switch (call.kind) {
    case Kind::all_reduce:
      return all_reduce(comm, call, unit);
    case Kind::reduce_scatter:
      return reduce_scatter(comm, call, unit);
    case Kind::all_gather:
      return all_gather(comm, call, unit);
    default:
      return broadcast(comm, call, unit);
  }
}

void run_messages(Comm& comm, std::span<const Call> calls, WorkId work) {
  std::vector<MPI_Request> requests;
  std::vector<int64_t> bytes(calls.size());  // that the sender has
  for (size_t i = 0; i < calls.size(); ++i) {
    const Call& call = calls[i];
    const bool sends = call.kind == Kind::send;
    const bool fine = record(comm, call, work);
    bytes[i] = sends && fine ? static_cast<int64_t>(call.count * bytes_of(call.type)) : 0;
    MPI_Request& request = requests.emplace_back();
    if (sends)
      MPI_Isend(&bytes[i], 1, MPI_INT64_T, call.peer, tag_count, comm.mpi, &request);
    else
      MPI_Irecv(&bytes[i], 1, MPI_INT64_T, call.peer, tag_count, comm.mpi, &request);
  }
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  requests.clear();
  std::vector<std::vector<std::byte>> strays;  // messages that do not fit
  for (size_t i = 0; i < calls.size(); ++i) {
    const Call& call = calls[i];
    const bool sends = call.kind == Kind::send;
    std::byte* data = bytes[i] == 0 ? nullptr : host(sends ? call.from : call.to);
    if (bytes[i] != static_cast<int64_t>(call.count * bytes_of(call.type))) {
      report(FindingKind::invalid_call, place_of(call),
             "rank " + std::to_string(sends ? comm.rank : call.peer) + " sends " + std::to_string(bytes[i]) +
                 " bytes where " + std::to_string(call.count * bytes_of(call.type)) + " are due");
      comm.error = ncclInvalidUsage;
      if (!sends) data = strays.emplace_back(static_cast<size_t>(bytes[i])).data();
    }
    for (size_t at = 0; at < static_cast<size_t>(bytes[i]); at += message_bytes) {
      const int part = static_cast<int>(std::min(message_bytes, static_cast<size_t>(bytes[i]) - at));
      MPI_Request& request = requests.emplace_back();
      if (sends)
        MPI_Isend(data + at, part, MPI_BYTE, call.peer, tag_data, comm.mpi, &request);
      else
        MPI_Irecv(data + at, part, MPI_BYTE, call.peer, tag_data, comm.mpi, &request);
    }
  }
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
}

}  // namespace softgpu::nccl

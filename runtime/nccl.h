// NCCL behind the collectives of device memory (runtime/communicator.h). Only in builds with CUDA.
#pragma once

#include <span>
#include <string>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm::gpu {

// The ranks' GPUs. Move- and copy-free: the waits of runtime/gpu.h look at every one alive.
class Nccl {
 public:
  // What rank 0 makes and all ranks begin with.
  static std::string make_id();
  // Itself a collective of all ranks, each with its GPU chosen. group: what messages call them. Throws Error(peer).
  Nccl(const std::string& id, int rank, int size, const std::string& group);
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;
  ~Nccl();

  // Enqueued on `stream`; begins[r] … begins[r + 1]: rank r's elements of `all`.
  void all_reduce_sum(Stream& stream, const char* name, Tensor t);
  void all_gather(Stream& stream, const char* name, Tensor mine, std::span<const int64_t> begins, Tensor all);
  // `all` may be overwritten.
  void reduce_scatter(Stream& stream, const char* name, Tensor all, std::span<const int64_t> begins, Tensor mine);

 private:
  friend void check_collectives();
  void check(int status, const char* name) const;
  void begin(const char* name);

  void* native_ = nullptr;  // the ncclComm_t
  std::string group_;
  int rank_, size_;
  const char* last_ = "start of NCCL";  // the collective that was enqueued last
};

// Throws Error(peer), with the name of the group's last collective, when NCCL has met an error since it was enqueued.
void check_collectives();

// The collective that was enqueued last; no name: none yet, or its ranks are gone.
struct LastCollective {
  const char* name = nullptr;
  std::string group;
};
LastCollective last_collective();

// The library's version, as 2.28.9.
std::string nccl_version();

}  // namespace notellm::gpu

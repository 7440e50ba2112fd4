#include "runtime/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "runtime/log.h"

namespace notellm {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, CPU_COUNT(&set));
}

int set_threads(int wanted, Communicator& ranks) {
  const int cores = available_cores(), host_cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  // mpirun binds small jobs to a core or socket each: then the mask is this rank's own part of the host.
  const bool own_part = static_cast<int64_t>(cores) * ranks.local_size() <= host_cores;
  int threads = wanted;
  if (threads == 0 && std::getenv("OMP_NUM_THREADS")) threads = omp_get_max_threads();
  if (threads == 0) threads = std::max(1, own_part ? cores : cores / ranks.local_size());
  omp_set_num_threads(threads);
  const int64_t asked = static_cast<int64_t>(threads) * ranks.local_size();
  if (ranks.rank() == 0 && asked > host_cores)
    spdlog::warn(
        "{} ranks of {} threads on a host with {} cores: they will wait for each other; lower 'threads' or the ranks",
        ranks.local_size(), threads, host_cores);
  if (ranks.rank() == 0 && threads > cores)
    spdlog::warn("{} threads bound to {} of {} cores: start mpirun with --bind-to none, or fewer threads", threads,
                 cores, host_cores);
  return threads;
}

}  // namespace notellm

// A group of ranks and the collectives among them.
//
// Every collective has a name; a watchdog (set_watchdog) ends the program when one does not end in time and prints the
// name, the group, the step, and the rank that did not come. Ranks of one host pass data through memory that they share
// (runtime/host_exchange.h), others by messages. Reductions of floats are in the order of ranks, whatever the message
// size, so that the same ranks give the same bits. One thread at a time may be in a collective of a group.
//
// A collective that takes a stream is of that stream's device. On a CPU stream it is the one without. On a CUDA stream
// it is enqueued on NCCL and returns: memory is the GPU's, all ranks enqueue the same collectives in the same order and
// with the same shapes (nothing checks shapes there), and what goes wrong later is thrown by whoever waits for the
// stream. Its sums are NCCL's: not in the order of ranks, but the same bits again on the same GPUs and network.
//
// Throws Error(peer) when ranks disagree in shape or MPI reports a failure, Error(internal) for shapes that do not fit
// each other on this rank. Whoever catches an error calls abort, since the other ranks wait.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {
namespace gpu {
class Nccl;
}

class Communicator {
 public:
  // One rank; every collective is the identity.
  static Communicator self();
  // All ranks that mpirun or srun started; without either, one rank without MPI. Itself a collective. Initialises MPI
  // on the first call; the last communicator to go finalises it, after which there can be no other.
  static Communicator world();

  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  // The ranks of the same colour as a group of their own, in their order here, called "GROUP COLOR". Itself a
  // collective. Where everyone has the same colour, a second communicator of the same ranks.
  Communicator split(const char* group, int color) const;
  // A second group of the same ranks and name, for collectives beside this one's. Itself a collective.
  Communicator duplicate() const;

  const std::string& group() const;  // as messages call it
  int rank() const;
  int size() const;
  int local_rank() const;  // among the ranks of this group on this host
  int local_size() const;
  bool on_shared_memory() const;  // how collectives of host memory go

  // t := sum over ranks of t, the same shape on all ranks. bf16 is summed in f32 and rounded once (on CUDA as NCCL
  // does).
  void all_reduce_sum(const char* name, Tensor t);
  void all_reduce_sum(Stream& stream, const char* name, Tensor t);
  // The maximum over ranks; NaN when any is NaN.
  double max(const char* name, double value);
  int64_t max(const char* name, int64_t value);
  // Ranks' rows one after the other, in the order of ranks: all [sum of rows, …]. Ranks may have different numbers of
  // rows, which are agreed first: rows_of[r] is the number on rank r, the same vector on all ranks. `mine` may lie in
  // its place in `all`, and may be an empty tensor where there are no rows. Any dtype.
  void all_gather_rows(const char* name, Tensor mine, std::span<const int64_t> rows_of, Tensor all);
  void all_gather_rows(Stream& stream, const char* name, Tensor mine, std::span<const int64_t> rows_of, Tensor all);
  std::vector<int64_t> all_gather(const char* name, int64_t value);
  // The sum over ranks of `all`; each rank gets its own rows: the transpose of all_gather_rows. `mine` may lie in its
  // place in `all`. On a CUDA stream `all` may be overwritten.
  void reduce_scatter_rows(const char* name, Tensor all, std::span<const int64_t> rows_of, Tensor mine);
  void reduce_scatter_rows(Stream& stream, const char* name, Tensor all, std::span<const int64_t> rows_of, Tensor mine);
  void broadcast(const char* name, Tensor t, int root);
  std::string broadcast(const char* name, const std::string& text, int root);
  void barrier(const char* name);
  // The text of the first rank whose text is not empty, on all ranks; empty when all are. What failed on any of them.
  std::string first_text(const char* name, const std::string& text);
  // Throws Error(peer) on all ranks, naming the first rank that differs, unless all have the same text.
  void require_equal(const char* name, const std::string& what, const std::string& text);

  // Bytes that left this rank so far, by the collective's name: what a gather or a reduce-scatter cannot do with fewer.
  // Those of this group and of all groups split from it, which share one count. Nobody is in a collective meanwhile.
  const std::map<std::string, int64_t>& bytes_sent() const;
  int64_t bytes_sent_in_group() const;  // in all, without those of groups split from it

  // Ends all ranks, prints nothing, never returns.
  [[noreturn]] static void abort(int exit_code);

 private:
  struct State;
  friend void run_beside_main_thread(const std::atomic<bool>& stop);
  gpu::Nccl& nccl();  // started on the first call, which is a collective
  explicit Communicator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// What bytes_sent() counts of an all-reduce of so many elements: each rank sums its part of them, for which the others
// send it theirs, and sends the sum to all.
int64_t all_reduce_bytes(int64_t elements, int64_t element_bytes, int rank, int ranks);

// "rank 3 has another configuration than rank 0: 'seed: 2', not 'seed: 1'; give all ranks the same": the first lines in
// which the texts of the two part.
std::string describe_difference(int rank, const std::string& what, const std::string& text, const std::string& first);

// From now on the collectives of this thread are not the watchdog's, sleep while they wait for messages, and end with
// Error(peer) once `stop` is set (runtime/side_collectives.h).
void run_beside_main_thread(const std::atomic<bool>& stop);

// From now on a collective that takes longer than `seconds` ends all ranks with a message and exit code 6; 0: never.
void set_watchdog(double seconds);
// The step that messages name, from 1.
void set_watchdog_step(int64_t step);

}  // namespace notellm

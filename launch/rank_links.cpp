#include "launch/rank_links.h"

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <mpi.h>

#include <algorithm>

#include "runtime/memory.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

constexpr int most_ranks_of_all_pairs = 6;

// Seconds of one message of `bytes`: half of the fastest of `repeats` round trips. Both ranks of the pair call it.
double message_seconds(bool first, int other, char* buffer, int bytes, int repeats) {
  double fastest = 1e30;
  for (int i = 0; i <= repeats; ++i) {  // the first one opens the connection
    const Stopwatch watch;
    if (first) MPI_Send(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD);
    MPI_Recv(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (!first) MPI_Send(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD);
    const double seconds = watch.seconds();
    if (i > 0) fastest = std::min(fastest, seconds / 2);
  }
  return fastest;
}

std::vector<RankLink> pairs_to_measure(int ranks) {
  std::vector<RankLink> pairs;
  for (int a = 0; a < ranks; ++a)
    for (int b = a + 1; b < ranks; ++b)
      if (ranks <= most_ranks_of_all_pairs || b == a + 1) pairs.push_back({a, b});
  return pairs;
}

}  // namespace

std::vector<RankLink> measure_links(Communicator& ranks) {
  constexpr int small_bytes = 8, large_bytes = 4 << 20;
  const Buffer buffer(large_bytes);
  auto* data = static_cast<char*>(buffer.data());
  std::vector<RankLink> links = pairs_to_measure(ranks.size());
  for (RankLink& link : links) {
    double found[2] = {};  // known to rank a; the sum over ranks tells rank 0
    ranks.barrier("measure a link");
    if (const bool first = ranks.rank() == link.a; first || ranks.rank() == link.b) {
      const int other = first ? link.b : link.a;
      const double small = message_seconds(first, other, data, small_bytes, 200);
      const double large = message_seconds(first, other, data, large_bytes, 10);
      if (first) {
        found[0] = small;
        found[1] = large;
      }
    }
    ranks.all_reduce_sum("link", Tensor::of(found, {2}));
    link.latency_us = 1e6 * found[0];
    link.bytes_per_second = large_bytes / found[1];
  }
  if (ranks.rank() != 0) links.clear();
  return links;
}

}  // namespace notellm

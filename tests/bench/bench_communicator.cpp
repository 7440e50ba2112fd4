// Sums over the ranks of one host: ours, through shared memory or (NOTELLM_SHARED_MEMORY=0) by messages, against MPI's
// own. Google Benchmark cannot keep several ranks in step, so this takes its own times: median and fastest of 40, in
// turns.
//
//     mpirun -n 2 bench_communicator [MB]        50 unless told
#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/stopwatch.h"

using namespace notellm;

int main(int argc, char** argv) {
  Communicator ranks = Communicator::world();
  const int64_t share = (argc > 1 ? std::atoi(argv[1]) : 50) * int64_t{250'000} / ranks.size(),
                n = share * ranks.size();
  std::vector<float> values(static_cast<size_t>(n), 1.0f), own(static_cast<size_t>(share));
  const Tensor all = Tensor::of(values.data(), {n}), mine = Tensor::of(own.data(), {share});
  const std::vector<int64_t> rows_of(static_cast<size_t>(ranks.size()), share);
  struct Way {
    const char* name;
    std::function<void()> run;
    std::vector<double> seconds = {};
  };
  const int count = static_cast<int>(n), part = static_cast<int>(share), bucket = 1 << 19;
  Way ways[] = {
      {"all_reduce_sum", [&] { ranks.all_reduce_sum("sum", all); }},
      {"MPI_Allreduce, whole",
       [&] { MPI_Allreduce(MPI_IN_PLACE, values.data(), count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); }},
      {"MPI_Allreduce, 2 MB buckets",
       [&] {
         for (int at = 0; at < count; at += bucket)
           MPI_Allreduce(MPI_IN_PLACE, values.data() + at, std::min(bucket, count - at), MPI_FLOAT, MPI_SUM,
                         MPI_COMM_WORLD);
       }},
      {"reduce_scatter_rows", [&] { ranks.reduce_scatter_rows("scatter", all, rows_of, mine); }},
      {"MPI_Reduce_scatter_block",
       [&] { MPI_Reduce_scatter_block(values.data(), own.data(), part, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); }},
      {"all_gather_rows", [&] { ranks.all_gather_rows("gather", mine, rows_of, all); }},
      {"MPI_Allgather",
       [&] { MPI_Allgather(own.data(), part, MPI_FLOAT, values.data(), part, MPI_FLOAT, MPI_COMM_WORLD); }},
  };
  for (int round = -1; round < 40; ++round)
    for (Way& way : ways) {
      std::ranges::fill(values, 1.0f);
      MPI_Barrier(MPI_COMM_WORLD);
      const Stopwatch watch;
      way.run();
      MPI_Barrier(MPI_COMM_WORLD);
      if (round >= 0) way.seconds.push_back(watch.seconds());
    }
  if (ranks.rank() == 0) {
    fmt::print("{} ranks, {} MB, {}\n", ranks.size(), n * 4 / 1'000'000,
               ranks.on_shared_memory() ? "shared memory" : "messages");
    for (Way& way : ways) {
      std::ranges::sort(way.seconds);
      fmt::print("{:30} median {:7.2f} ms, fastest {:7.2f} ms\n", way.name, 1e3 * way.seconds[way.seconds.size() / 2],
                 1e3 * way.seconds[0]);
    }
  }
}

#include "launch/agreement.h"

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <fmt/format.h>
#include <mpi.h>

#include <chrono>
#include <cmath>

#include "runtime/files.h"

namespace notellm {
namespace {

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Rank 0's view of one other rank; both call it.
double clock_ahead(bool first, int other) {
  constexpr int repeats = 30;
  double fastest = 1e30, ahead = 0;
  for (int i = 0; i < repeats; ++i) {
    double there = 0;
    const double begin = wall_clock();
    if (first) MPI_Send(&there, 1, MPI_DOUBLE, other, 0, MPI_COMM_WORLD);
    MPI_Recv(&there, 1, MPI_DOUBLE, other, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    const double end = wall_clock();
    if (!first) {
      there = wall_clock();
      MPI_Send(&there, 1, MPI_DOUBLE, other, 0, MPI_COMM_WORLD);
    } else if (end - begin < fastest) {
      fastest = end - begin;
      ahead = there - (begin + end) / 2;
    }
  }
  return ahead;
}

}  // namespace

std::vector<std::string> find_differences(Communicator& ranks, const std::vector<Fact>& facts) {
  std::vector<std::string> differences;
  for (const auto& [what, text] : facts) {
    const std::vector<int64_t> hashes = ranks.all_gather("facts", static_cast<int64_t>(hash64(text)));
    std::string first;
    for (int r = 1; r < ranks.size(); ++r) {
      if (hashes[r] == hashes[0]) continue;
      if (first.empty()) first = ranks.broadcast("facts", text, 0);
      differences.push_back(describe_difference(r, what, ranks.broadcast("facts", text, r), first));
    }
  }
  if (ranks.rank() != 0) differences.clear();
  return differences;
}

std::vector<double> measure_clocks(Communicator& ranks) {
  std::vector<double> ahead(1, 0.0);
  for (int r = 1; r < ranks.size(); ++r) {
    ranks.barrier("measure a clock");
    if (ranks.rank() == 0) ahead.push_back(clock_ahead(true, r));
    if (ranks.rank() == r) clock_ahead(false, 0);
  }
  if (ranks.rank() != 0) ahead.clear();
  return ahead;
}

std::vector<std::string> clock_warnings(const std::vector<double>& ahead) {
  std::vector<std::string> warnings;
  for (size_t r = 0; r < ahead.size(); ++r)
    if (std::abs(ahead[r]) > 1)
      warnings.push_back(
          fmt::format("rank {}: its clock is {:.1f} s {} rank 0's: log lines and file times will mislead; "
                      "synchronise the hosts (chrony, ntpd)",
                      r, std::abs(ahead[r]), ahead[r] > 0 ? "ahead of" : "behind"));
  return warnings;
}

}  // namespace notellm

#include "launch/rank_links.h"

#define OMPI_SKIP_MPICXX 1  // not the old C++ bindings
#include <mpi.h>

#include <algorithm>
#include <map>

#include "launch/table.h"
#include "runtime/memory.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

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

std::vector<RankLink> pairs_to_measure(const std::vector<std::string>& hosts) {
  const int ranks = static_cast<int>(hosts.size());
  const auto first_of_host = [&](int r) { return std::ranges::find(hosts, hosts[r]) - hosts.begin() == r; };
  std::vector<RankLink> pairs;
  for (int a = 0; a < ranks; ++a)
    for (int b = a + 1; b < ranks; ++b)
      if (ranks <= most_ranks_of_all_pairs || b == a + 1 || (a == 0 && first_of_host(b))) pairs.push_back({a, b});
  return pairs;
}

std::string matrix(const std::vector<RankLink>& links, int ranks) {
  std::vector<std::vector<std::string>> cells(ranks, std::vector<std::string>(ranks, "–"));
  for (const RankLink& link : links) {
    cells[link.b][link.a] = fmt::format("{:.1f} µs", link.latency_us);
    cells[link.a][link.b] = fmt::format("{:.2f} GB/s", link.bytes_per_second / 1e9);
  }
  Table table(std::string(ranks + 1, 'r'));
  std::vector<std::string> head = {"rank"};
  for (int r = 0; r < ranks; ++r) head.push_back(std::to_string(r));
  table.row(head);
  for (int r = 0; r < ranks; ++r) {
    cells[r].insert(cells[r].begin(), std::to_string(r));
    table.row(cells[r]);
  }
  return table.text(2);
}

std::string by_hosts(const std::vector<RankLink>& links, const std::vector<std::string>& hosts) {
  std::map<std::pair<std::string, std::string>, std::vector<RankLink>> groups;
  for (const RankLink& link : links) groups[std::minmax(hosts[link.a], hosts[link.b])].push_back(link);
  Table table("lrrrl");
  table.row({"hosts", "pairs", "latency", "GB/s", "slowest pair"});
  for (const auto& [ends, of] : groups) {
    const auto latency = std::ranges::minmax(of, {}, &RankLink::latency_us);
    const auto speed = std::ranges::minmax(of, {}, &RankLink::bytes_per_second);
    table.row({ends.first == ends.second ? ends.first : fmt::format("{} – {}", ends.first, ends.second),
               std::to_string(of.size()),
               fmt::format("{:.1f} to {:.1f} µs", latency.min.latency_us, latency.max.latency_us),
               fmt::format("{:.2f} to {:.2f}", speed.min.bytes_per_second / 1e9, speed.max.bytes_per_second / 1e9),
               fmt::format("{} – {}", speed.min.a, speed.min.b)});
  }
  return table.text(2);
}

}  // namespace

std::vector<RankLink> measure_links(Communicator& ranks, const std::vector<std::string>& hosts) {
  constexpr int small_bytes = 8, large_bytes = 4 << 20;
  const Buffer buffer(large_bytes);
  auto* data = static_cast<char*>(buffer.data());
  std::vector<RankLink> links = pairs_to_measure(hosts);
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

std::string link_text(const std::vector<RankLink>& links, const std::vector<std::string>& hosts) {
  return static_cast<int>(hosts.size()) <= most_ranks_of_all_pairs ? matrix(links, static_cast<int>(hosts.size()))
                                                                   : by_hosts(links, hosts);
}

}  // namespace notellm

// Point-to-point speed between ranks, which collectives do not show.
#pragma once

#include <string>
#include <vector>

#include "runtime/communicator.h"

namespace notellm {

struct RankLink {
  int a = 0, b = 0;
  double latency_us = 0;        // half a round trip of 8 bytes
  double bytes_per_second = 0;  // 4 MB there and back
};

inline constexpr int most_ranks_of_all_pairs = 8;

// Between all pairs of up to 8 ranks; of more ranks, each and the next one, and the first of all and of each other
// host. One pair at a time. hosts: of each rank. All ranks call it; rank 0 gets the list, the others an empty one.
std::vector<RankLink> measure_links(Communicator& ranks, const std::vector<std::string>& hosts);

// Of up to 8 ranks a matrix: below the diagonal latency, above it GB/s. Of more, a line for each two hosts, with the
// slowest pair.
std::string link_text(const std::vector<RankLink>& links, const std::vector<std::string>& hosts);

}  // namespace notellm

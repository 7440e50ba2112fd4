// Point-to-point speed between ranks, which collectives do not show.
#pragma once

#include <vector>

#include "runtime/communicator.h"

namespace notellm {

struct RankLink {
  int a = 0, b = 0;
  double latency_us = 0;        // half a round trip of 8 bytes
  double bytes_per_second = 0;  // 4 MB there and back
};

// Between all pairs of up to 6 ranks; of more ranks, each and the next one. One pair at a time. All ranks call it; rank
// 0 gets the list, the others an empty one.
std::vector<RankLink> measure_links(Communicator& ranks);

}  // namespace notellm

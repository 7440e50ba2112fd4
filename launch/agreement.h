// In what the ranks of a run differ.
#pragma once

#include <string>
#include <vector>

#include "runtime/communicator.h"

namespace notellm {

// Something of which every rank has a text, and should have the same: a version, a configuration.
struct Fact {
  std::string what, text;
};

// "rank 3 has another MPI than rank 0: 'Open MPI v4.1.4', not '…'; give all ranks the same" of each fact and each rank
// that differs; of long texts the lines in which they part. All ranks call it, with the same facts in the same order;
// rank 0 gets the list, the others an empty one.
std::vector<std::string> find_differences(Communicator& ranks, const std::vector<Fact>& facts);

// Of each rank, how many seconds its clock is ahead of rank 0's: the middle of the fastest of several round trips, so
// right to half of what that took. All ranks call it; rank 0 gets the list.
std::vector<double> measure_clocks(Communicator& ranks);
// What to say of them: of each rank that is more than a second off.
std::vector<std::string> clock_warnings(const std::vector<double>& ahead);

}  // namespace notellm

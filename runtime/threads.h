// Threads of a rank.
#pragma once

#include "runtime/communicator.h"

namespace notellm {

// Sets the OpenMP threads of this process and returns how many. wanted 0: OMP_NUM_THREADS where it is set, else the
// cores that this process may run on, shared out over the ranks of its host that may run on the same ones. Warns (rank
// 0) when the ranks of a host ask for more threads than it has cores.
int set_threads(int wanted, Communicator& ranks);

// Cores that this process may run on (its affinity mask).
int available_cores();

}  // namespace notellm

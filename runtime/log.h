// Log lines through spdlog: rank 0 writes to stderr, the other ranks only warnings and errors, prefixed with their
// rank.
#pragma once

#include <spdlog/spdlog.h>

namespace notellm {

// Call once the rank is known; before it, lines go out unprefixed.
void set_up_logging(int rank, int ranks);

}  // namespace notellm

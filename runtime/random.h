// Random numbers and permutations as pure functions of a key and counters: no state, the same everywhere.
#pragma once

#include <cstdint>

namespace notellm {

// Counter-based random numbers: 64 random bits as a pure function of the key and two counters.
uint64_t random_bits(uint64_t key, uint64_t counter_a, uint64_t counter_b);
// A number in [0, 1).
double random_unit(uint64_t key, uint64_t counter_a, uint64_t counter_b);
// Element i of a keyed permutation of 0 .. n-1 (a Feistel network with cycle walking; no memory).
uint64_t permute(uint64_t key, uint64_t n, uint64_t i);

}  // namespace notellm

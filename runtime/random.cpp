#include "runtime/random.h"

#include <algorithm>
#include <array>
#include <bit>

#include "runtime/error.h"

namespace notellm {

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The result is the
// first two of the block's four words.
uint64_t random_bits(uint64_t key, uint64_t counter_a, uint64_t counter_b) {
  const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
  const auto high = [](uint64_t v) { return static_cast<uint32_t>(v >> 32); };
  std::array<uint32_t, 4> x = {low(counter_a), high(counter_a), low(counter_b), high(counter_b)};
  uint32_t key_low = low(key), key_high = high(key);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * x[0], b = uint64_t{0xCD9E8D57} * x[2];
    x = {high(b) ^ x[1] ^ key_low, low(b), high(a) ^ x[3] ^ key_high, low(a)};
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return uint64_t{x[1]} << 32 | x[0];
}

double random_unit(uint64_t key, uint64_t counter_a, uint64_t counter_b) {
  return static_cast<double>(random_bits(key, counter_a, counter_b) >> 11) * 0x1p-53;
}

// Six Feistel rounds on two halves of equal width permute the smallest 4^w ≥ n numbers; a result outside 0 .. n-1 goes
// through again until one is inside (fewer than four times on average), which permutes 0 .. n-1.
uint64_t permute(uint64_t key, uint64_t n, uint64_t i) {
  NOTELLM_CHECK(i < n, "element {} of a permutation of {}", i, n);
  const int width = std::max(1, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << width) - 1;
  do {
    uint64_t left = i >> width, right = i & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t mixed = left ^ (random_bits(key, right, round) & mask);
      left = right;
      right = mixed;
    }
    i = left << width | right;
  } while (i >= n);
  return i;
}

}  // namespace notellm

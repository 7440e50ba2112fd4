// A closed set of token sequences, as what may follow what.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace notellm {

class TokenTrie {
 public:
  // Each sequence ends with `end`, which is added and must not be in it. Throws Error: no sequence, or an empty one.
  TokenTrie(std::vector<std::vector<int32_t>> sequences, int32_t end);

  static constexpr int32_t root = 0;
  // Tokens that may follow, ascending.
  std::span<const int32_t> candidates(int32_t node) const {
    return {token_.data() + begin_[node], static_cast<size_t>(begin_[node + 1] - begin_[node])};
  }
  // The node after a candidate.
  int32_t next(int32_t node, int32_t token) const;
  int64_t longest() const { return longest_; }  // tokens, without the end

 private:
  std::vector<int32_t> begin_;         // [nodes + 1] each node's first candidate
  std::vector<int32_t> token_, next_;  // [candidates]; next of `end` is no node
  int64_t longest_ = 0;
};

}  // namespace notellm

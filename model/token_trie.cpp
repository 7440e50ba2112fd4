#include "model/token_trie.h"

#include <algorithm>

#include "runtime/error.h"

namespace notellm {

// Nodes in the order of their depth: a node is the run of sorted sequences that begin alike.
TokenTrie::TokenTrie(std::vector<std::vector<int32_t>> sequences, int32_t end) {
  NOTELLM_CHECK(!sequences.empty(), "a closed set without a sequence");
  for (std::vector<int32_t>& s : sequences) {
    NOTELLM_CHECK(!s.empty() && std::ranges::find(s, end) == s.end(), "a sequence that is empty or has {} in it", end);
    longest_ = std::max(longest_, static_cast<int64_t>(s.size()));
    s.push_back(end);
  }
  std::ranges::sort(sequences);
  sequences.erase(std::ranges::unique(sequences).begin(), sequences.end());
  struct Node {
    size_t first, last, depth;  // sequences [first, last) share `depth` tokens
  };
  std::vector<Node> nodes{{0, sequences.size(), 0}};
  for (size_t n = 0; n < nodes.size(); ++n) {
    const Node node = nodes[n];
    begin_.push_back(static_cast<int32_t>(token_.size()));
    for (size_t i = node.first; i < node.last;) {
      const int32_t token = sequences[i][node.depth];
      size_t last = i + 1;
      while (last < node.last && sequences[last][node.depth] == token) ++last;
      token_.push_back(token);
      next_.push_back(token == end ? -1 : static_cast<int32_t>(nodes.size()));
      if (token != end) nodes.push_back({i, last, node.depth + 1});
      i = last;
    }
  }
  begin_.push_back(static_cast<int32_t>(token_.size()));
}

int32_t TokenTrie::next(int32_t node, int32_t token) const {
  const auto from = token_.begin() + begin_[node], to = token_.begin() + begin_[node + 1];
  const auto found = std::lower_bound(from, to, token);
  NOTELLM_CHECK(found != to && *found == token, "token {} cannot follow here", token);
  return next_[found - token_.begin()];
}

}  // namespace notellm

// Nearest vectors by scalar product, with FAISS.
#pragma once

#include <faiss/Index.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace notellm {

// flat: exact. hnsw: a graph of 32 neighbours a vector (Malkov and Yashunin 2016, arXiv 1603.09320); built by several
// threads at once, so that it may differ from one run to the next. ivf: 4·sqrt(n) cells, of which a sixteenth is
// searched.
enum class IndexKind { flat, hnsw, ivf };
const char* name_of(IndexKind kind);
std::map<std::string, IndexKind> index_kinds();

struct Neighbor {
  int64_t row;  // of the indexed vectors; -1: there are no more
  float cosine;
};

// How well and how fast an approximate index finds what exact search finds, for up to 1,000 of its own vectors.
struct SearchQuality {
  int64_t queries;
  double recall;                  // share of the exact 10 nearest that are among the 10 found
  double seconds, exact_seconds;  // for all queries
};

class NearestIndex {
 public:
  // vectors [n, d] f32, n ≥ 1, normalised. Copies them.
  NearestIndex(IndexKind kind, Tensor vectors);

  // The nearest `count` of each query, nearest first: [queries · count].
  std::vector<Neighbor> search(Tensor queries, int64_t count) const;
  SearchQuality compare_with_exact(Tensor vectors) const;

  IndexKind kind() const { return kind_; }
  double build_seconds() const { return build_seconds_; }

 private:
  IndexKind kind_;
  std::unique_ptr<faiss::Index> quantizer_, index_;
  double build_seconds_ = 0;
};

}  // namespace notellm

#include "launch/nearest.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "launch/measure.h"

// OpenBLAS, with which FAISS is linked on Debian, has threads of its own; another BLAS has no such function.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace notellm {
namespace {

std::unique_ptr<faiss::Index> make_index(IndexKind kind, int64_t n, int64_t d,
                                         std::unique_ptr<faiss::Index>& quantizer) {
  const int dimensions = static_cast<int>(d);
  if (kind == IndexKind::flat) return std::make_unique<faiss::IndexFlatIP>(dimensions);
  if (kind == IndexKind::hnsw) {
    auto index = std::make_unique<faiss::IndexHNSWFlat>(dimensions, 32, faiss::METRIC_INNER_PRODUCT);
    index->hnsw.efConstruction = 80;
    index->hnsw.efSearch = 128;
    return index;
  }
  // k-means wants 39 vectors a cell.
  const auto cells =
      std::clamp<int64_t>(static_cast<int64_t>(4 * std::sqrt(double(n))), 1, std::max<int64_t>(1, n / 39));
  quantizer = std::make_unique<faiss::IndexFlatIP>(dimensions);
  auto index = std::make_unique<faiss::IndexIVFFlat>(quantizer.get(), dimensions, cells, faiss::METRIC_INNER_PRODUCT);
  index->nprobe = std::max<int64_t>(1, (cells + 15) / 16);
  index->cp.min_points_per_centroid = 1;  // k-means prints a warning below it
  return index;
}

}  // namespace

const char* name_of(IndexKind kind) {
  return kind == IndexKind::flat ? "flat" : kind == IndexKind::hnsw ? "hnsw" : "ivf";
}

std::map<std::string, IndexKind> index_kinds() {
  std::map<std::string, IndexKind> kinds;
  for (const IndexKind kind : {IndexKind::flat, IndexKind::hnsw, IndexKind::ivf}) kinds[name_of(kind)] = kind;
  return kinds;
}

NearestIndex::NearestIndex(IndexKind kind, Tensor vectors) : kind_(kind) {
  NOTELLM_CHECK(vectors.rows() > 0, "an index of {}", describe(vectors));
  if (openblas_set_num_threads) openblas_set_num_threads(omp_get_max_threads());
  build_seconds_ = seconds_of([&] {
    index_ = make_index(kind, vectors.rows(), vectors.cols(), quantizer_);
    index_->train(vectors.rows(), vectors.as<float>());
    index_->add(vectors.rows(), vectors.as<float>());
  });
}

std::vector<Neighbor> NearestIndex::search(Tensor queries, int64_t count) const {
  const int64_t size = queries.rows() * count;
  std::vector<float> cosines(size);
  std::vector<faiss::Index::idx_t> rows(size);
  if (size > 0) index_->search(queries.rows(), queries.as<float>(), count, cosines.data(), rows.data());
  std::vector<Neighbor> found(size);
  for (int64_t i = 0; i < size; ++i) found[i] = {rows[i], cosines[i]};
  return found;
}

SearchQuality NearestIndex::compare_with_exact(Tensor vectors) const {
  constexpr int64_t most_queries = 1000, count = 10;
  const int64_t queries = std::min(vectors.rows(), most_queries), step = vectors.rows() / queries;
  std::vector<float> sample;
  for (int64_t i = 0; i < queries; ++i) {
    const float* row = vectors.as<float>() + i * step * vectors.cols();
    sample.insert(sample.end(), row, row + vectors.cols());
  }
  const Tensor asked = Tensor::of(sample.data(), {queries, vectors.cols()});
  const NearestIndex exact(IndexKind::flat, vectors);
  SearchQuality quality{queries, 0, 0, 0};
  std::vector<Neighbor> found, nearest;
  quality.seconds = seconds_of([&] { found = search(asked, count); });
  quality.exact_seconds = seconds_of([&] { nearest = exact.search(asked, count); });
  int64_t hits = 0, wanted = 0;
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t k = 0; k < count; ++k) {
      const int64_t row = nearest[i * count + k].row;
      wanted += row >= 0;
      const auto begin = found.begin() + i * count;
      hits += row >= 0 && std::any_of(begin, begin + count, [&](const Neighbor& n) { return n.row == row; });
    }
  quality.recall = static_cast<double>(hits) / static_cast<double>(wanted);
  return quality;
}

}  // namespace notellm

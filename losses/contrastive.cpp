#include "losses/contrastive.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/infonce.h"

namespace notellm {

ContrastiveSums Contrastive::run(Stream& stream, Communicator& ranks, const GatheredNotes& notes, Tensor z, float tau,
                                 double scale, Tensor dz, double* dtau, Arena& arena) {
  const int64_t all = static_cast<int64_t>(notes.ids.size()), rows = z.rows(), d = z.cols(), mark = arena.mark();
  const int64_t first = std::accumulate(notes.rows_of.begin(), notes.rows_of.begin() + ranks.rank(), int64_t{0});
  NOTELLM_CHECK(rows == notes.rows_of[ranks.rank()], "{} of {} note vectors", rows, notes.rows_of[ranks.rank()]);

  const Tensor z_all = arena.allocate(DType::f32, {all, d}), dz_all = arena.allocate(DType::f32, {all, d});
  ranks.all_gather_rows("note vectors", z, notes.rows_of, z_all);
  const Tensor log_q = notes.log_q.empty() ? Tensor() : Tensor::of(notes.log_q.data(), {all});
  mask_.build(notes.ids, first, first + rows, mask_known_);

  const Tensor lse = arena.allocate(DType::f64, {rows}), positive = arena.allocate(DType::f32, {rows});
  const Tensor similarity = arena.allocate(DType::f32, {rows});
  const Tensor workspace = arena.allocate(DType::f32, {infonce_workspace(rows, all)});
  infonce(stream, z, first, z_all, tau, log_q, mask_.begin(), mask_.columns(), lse, positive, similarity, workspace);

  ContrastiveSums sums;
  for (int64_t i = 0; i < rows; ++i) {
    const float correction = notes.log_q.empty() ? 0.0f : notes.log_q[(first + i) ^ 1];
    sums.loss += lse.as<double>()[i] - positive.as<float>()[i];
    sums.positive_similarity += (positive.as<float>()[i] + correction) / std::exp(double(tau));
    sums.negative_similarity += similarity.as<float>()[i];
  }

  std::memset(dz.data, 0, dz.bytes());
  std::memset(dz_all.data, 0, dz_all.bytes());
  const Tensor dz_columns = arena.allocate(DType::f32, {rows, d});
  *dtau = 0;
  infonce_backward(stream, z, first, z_all, tau, log_q, mask_.begin(), mask_.columns(), lse, static_cast<float>(scale),
                   dz, dz_all, Tensor::of(dtau, {1}), workspace);
  ranks.reduce_scatter_rows("note vector gradients", dz_all, notes.rows_of, dz_columns);
  const float share = gradient_ == ContrastiveGradient::released_code ? 1.0f / ranks.size() : 1.0f;
  for (int64_t i = 0; i < dz.size(); ++i) dz.as<float>()[i] = share * (dz.as<float>()[i] + dz_columns.as<float>()[i]);
  arena.rewind(mark);
  return sums;
}

}  // namespace notellm

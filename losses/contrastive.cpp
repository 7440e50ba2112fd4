#include "losses/contrastive.h"

#include <cmath>
#include <numeric>

#include "kernels/embedding.h"
#include "kernels/infonce.h"

namespace notellm {

void Contrastive::run(Stream& stream, Communicator& ranks, const GatheredNotes& notes, Tensor z, float tau,
                      double scale, Tensor dz, Arena& arena) {
  const int64_t all = static_cast<int64_t>(notes.ids.size()), rows = z.rows(), d = z.cols(), mark = arena.mark();
  const int64_t first = std::accumulate(notes.rows_of.begin(), notes.rows_of.begin() + ranks.rank(), int64_t{0});
  NOTELLM_CHECK(rows == notes.rows_of[ranks.rank()], "{} of {} note vectors", rows, notes.rows_of[ranks.rank()]);
  notes_ = notes;
  first_ = first;
  tau_ = tau;

  mask_.build(notes.ids, first, first + rows, mask_known_);
  own_rows_.resize(rows);
  std::iota(own_rows_.begin(), own_rows_.end(), 0);
  Tensor begin, columns, log_q, own_rows;
  upload_.send({{mask_.begin(), &begin},
                {mask_.columns(), &columns},
                {Tensor::of(own_rows_.data(), {rows}), &own_rows},
                {notes.log_q.empty() ? Tensor() : Tensor::of(notes.log_q.data(), {all}), &log_q}});
  if (notes.log_q.empty()) log_q = Tensor();

  const Tensor z_all = arena.allocate(DType::f32, {all, d}), dz_all = arena.allocate(DType::f32, {all, d});
  const Tensor lse = arena.allocate(DType::f64, {rows}), positive = arena.allocate(DType::f32, {rows});
  const Tensor similarity = arena.allocate(DType::f32, {rows}), dtau = arena.allocate(DType::f64, {1});
  const Tensor workspace = arena.allocate(DType::f32, {infonce_workspace(stream.device(), rows, all, d)});
  const Tensor dz_columns = arena.allocate(DType::f32, {rows, d});
  ranks.all_gather_rows(stream, "note vectors", z, notes.rows_of, z_all);
  upload_.wait(stream);
  infonce(stream, z, first, z_all, tau, log_q, begin, columns, lse, positive, similarity, workspace);

  for (const Tensor& sum : {dz, dz_all, dtau}) set_zero(stream, sum);
  infonce_backward(stream, z, first, z_all, tau, log_q, begin, columns, lse, static_cast<float>(scale * share_), dz,
                   dz_all, dtau, workspace);
  ranks.reduce_scatter_rows(stream, "note vector gradients", dz_all, notes.rows_of, dz_columns);
  scatter_add_rows(stream, dz_columns, {own_rows, {}, {}}, dz);
  upload_.done(stream);
  found_ = download_.fetch(stream, {lse, positive, similarity, dtau});
  arena.rewind(mark);
}

ContrastiveSums Contrastive::sums() const {
  download_.wait();
  const auto lse = found_[0].span<double>();
  const auto positive = found_[1].span<float>(), similarity = found_[2].span<float>();
  ContrastiveSums sums;
  for (size_t i = 0; i < lse.size(); ++i) {
    const float correction = notes_.log_q.empty() ? 0.0f : notes_.log_q[(first_ + i) ^ 1];
    sums.loss += lse[i] - positive[i];
    sums.positive_similarity += (positive[i] + correction) / std::exp(double(tau_));
    sums.negative_similarity += similarity[i];
  }
  sums.dtau = *found_[3].as<double>() / share_;  // the authors' code leaves tau's gradient whole
  return sums;
}

}  // namespace notellm

#include "training/gradient_sum.h"

namespace notellm {
namespace {

// Where a view begins in the flat array.
int64_t place(const Weights& gradients, const Tensor& view) { return view.as<float>() - gradients.flat.as<float>(); }

}  // namespace

void GradientSum::sum(Tensor flat, int64_t begin, int64_t end) {
  if (begin < end) ranks_.all_reduce_sum(sums_, "gradients", flat.slice(begin, end));
}

void GradientSum::layer_done(Stream& stream, const Weights& gradients, int layer) {
  if (!stream.on_gpu() || ranks_.size() == 1) return;
  const bool last = layer + 1 == static_cast<int>(gradients.layers.size());
  const int64_t begin = place(gradients, gradients.layers[layer].input_norm);
  const int64_t end = last ? place(gradients, gradients.final_norm) : begin_;
  ready_.record(stream);
  ready_.wait(sums_);
  sum(gradients.flat, begin, end);
  begin_ = begin;
  if (last) end_ = end;
}

void GradientSum::finish(Stream& stream, const Weights& gradients) {
  ready_.record(stream);
  ready_.wait(sums_);
  sum(gradients.flat, end_, gradients.flat.size());
  sum(gradients.flat, 0, begin_);
  begin_ = end_ = 0;
  done_.record(sums_);
  done_.wait(stream);
}

}  // namespace notellm

#include "losses/token_loss.h"

#include "kernels/cross_entropy.h"
#include "kernels/cross_entropy_share.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "model/tiles.h"

namespace notellm {

namespace {

// Losses and the gradient of a tile of logits. One rank has all columns and does it in one pass; parts exchange sums.
void cross_entropy_of_parts(Stream& stream, Communicator& tensor, Tensor logits, Tensor labels, int64_t in_use,
                            float scale, Tensor loss, Tensor dlogits, Arena& arena) {
  const int64_t rows = logits.rows(), columns = logits.cols(), parts = tensor.size();
  if (parts == 1) return cross_entropy(stream, logits, labels, in_use, scale, loss, dlogits);
  const int64_t own_in_use = std::clamp<int64_t>(in_use - columns * tensor.rank(), 0, columns);
  const Tensor sums = arena.allocate(DType::f32, {parts, rows * 3});
  const std::vector<int64_t> one_each(static_cast<size_t>(parts), 1);
  const Tensor own = sums.slice(tensor.rank(), tensor.rank() + 1);
  cross_entropy_sums(stream, logits, labels, own_in_use, own.reshape({rows, 3}));
  tensor.all_gather_rows(stream, "sums of logits", own, one_each, sums);
  cross_entropy_share(stream, logits, labels, own_in_use, sums, scale, loss, dlogits);
}

}  // namespace

void token_loss(Stream& stream, Communicator& tensor, Tensor hidden, Tensor places, Tensor labels, Tensor head,
                int64_t vocabulary_in_use, double scale, Tensor d_hidden, Tensor d_head, Tensor loss, Arena& arena) {
  const int64_t dim = hidden.cols(), vocabulary = head.rows();
  const DType compute = hidden.dtype;
  const int64_t tile = logit_rows(stream.device(), vocabulary);
  for_tiles(arena, places.rows(), tile, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    const Tensor tile_places = places.slice(begin, end);
    const Tensor h = arena.allocate(compute, {rows, dim}), dh = arena.allocate(compute, {rows, dim});
    const Tensor logits = arena.allocate(DType::f32, {rows, vocabulary});
    const Tensor dlogits = compute == DType::f32 ? logits : arena.allocate(compute, {rows, vocabulary});
    gather_rows(stream, hidden, tile_places, h);
    gemm(stream, h, Transpose::no, head, Transpose::yes, logits);
    cross_entropy_of_parts(stream, tensor, logits, labels.slice(begin, end), vocabulary_in_use,
                           static_cast<float>(scale), loss.slice(begin, end), dlogits, arena);
    gemm(stream, dlogits, Transpose::no, head, Transpose::no, dh);
    gemm(stream, dlogits, Transpose::yes, h, Transpose::no, d_head, true);
    scatter_add_rows(stream, dh, {tile_places, {}, {}}, d_hidden);
  });
}

int64_t token_loss_arena_bytes(Device device, DType compute, int64_t dim, int64_t vocabulary, int tensor_ranks,
                               int64_t labels) {
  const int64_t size = size_of(compute), rows = std::min(labels, logit_rows(device, vocabulary)), alignment = 5 * 64;
  return rows * (2 * dim * size + vocabulary * (4 + (compute == DType::f32 ? 0 : size)) + tensor_ranks * 12) +
         alignment;
}

}  // namespace notellm

#include "losses/token_loss.h"

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "model/tiles.h"

namespace notellm {

void token_loss(Stream& stream, Tensor hidden, Tensor places, Tensor labels, Tensor head, int64_t vocabulary_in_use,
                double scale, Tensor d_hidden, Tensor d_head, Tensor loss, Arena& arena) {
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
    cross_entropy(stream, logits, labels.slice(begin, end), vocabulary_in_use, static_cast<float>(scale),
                  loss.slice(begin, end), dlogits);
    gemm(stream, dlogits, Transpose::no, head, Transpose::no, dh);
    gemm(stream, dlogits, Transpose::yes, h, Transpose::no, d_head, true);
    scatter_add_rows(stream, dh, {tile_places, {}, {}}, d_hidden);
  });
}

int64_t token_loss_arena_bytes(Device device, DType compute, int64_t dim, int64_t vocabulary) {
  const int64_t size = size_of(compute), rows = logit_rows(device, vocabulary), alignment = 4 * 64;
  return rows * (2 * dim * size + vocabulary * (4 + (compute == DType::f32 ? 0 : size))) + alignment;
}

}  // namespace notellm

#include "model/note_head.h"

#include "kernels/convert.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/note_vector.h"

namespace notellm {
namespace {

Tensor gathered(Stream& stream, Tensor hidden, Tensor places, Arena& arena) {
  const Tensor rows = arena.allocate(hidden.dtype, {places.rows(), hidden.cols()});
  gather_rows(stream, hidden, places, rows);
  return rows;
}

// The vectors' gradient in the dtype of the products.
Tensor in_dtype(Stream& stream, Tensor dv, DType dtype, Arena& arena) {
  if (dtype == DType::f32) return dv;
  const Tensor narrow = arena.allocate(dtype, {dv.rows(), dv.cols()});
  convert(stream, dv, narrow);
  return narrow;
}

}  // namespace

void note_vectors(Stream& stream, Tensor hidden, Tensor places, Tensor projection, Tensor z, Tensor norm,
                  Arena& arena) {
  const int64_t mark = arena.mark();
  gemm(stream, gathered(stream, hidden, places, arena), Transpose::no, projection, Transpose::yes, z);
  l2_normalize(stream, z, z, norm);
  arena.rewind(mark);
}

void note_vectors_backward(Stream& stream, Tensor dz, Tensor hidden, Tensor places, Tensor projection, Tensor z,
                           Tensor norm, Tensor d_hidden, Tensor d_projection, Arena& arena) {
  const int64_t mark = arena.mark();
  l2_normalize_backward(stream, dz, z, norm, dz);
  const Tensor h = gathered(stream, hidden, places, arena),
               dh = arena.allocate(hidden.dtype, {places.rows(), hidden.cols()});
  const Tensor dv = in_dtype(stream, dz, hidden.dtype, arena);
  gemm(stream, dv, Transpose::yes, h, Transpose::no, d_projection, true);
  gemm(stream, dv, Transpose::no, projection, Transpose::no, dh);
  scatter_add_rows(stream, dh, {places, {}, {}}, d_hidden);
  arena.rewind(mark);
}

}  // namespace notellm

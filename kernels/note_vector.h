// L2 normalisation of note vectors.
#pragma once

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace notellm {

// z[r,:] = v[r,:] / |v[r,:]|,  norm[r] = |v[r,:]|.   A zero row stays zero.
//   v, z [rows, d] f32, z may be v;  norm [rows] f32
void l2_normalize(Stream& stream, Tensor v, Tensor z, Tensor norm);

// dv = (dz − z·(z·dz)) / norm (0 for a zero row).   dv may be dz.
// Both throw Error(internal) for shapes or dtypes that do not fit each other.
void l2_normalize_backward(Stream& stream, Tensor dz, Tensor z, Tensor norm, Tensor dv);

namespace gpu {  // after the checks
void l2_normalize(Stream& stream, Tensor v, Tensor z, Tensor norm);
void l2_normalize_backward(Stream& stream, Tensor dz, Tensor z, Tensor norm, Tensor dv);
}  // namespace gpu

}  // namespace notellm

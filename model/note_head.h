// The note vector head: n = W·h at the note rows, z = n / |n|.
#pragma once

#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

// z[i, :] = normalised projection · hidden[places[i], :]
//   hidden [h, dim] f32 | bf16;  places [b] i32;  projection [note_dim, dim] as hidden;  z [b, note_dim] f32;
//   norm [b] f32
void note_vectors(Stream& stream, Tensor hidden, Tensor places, Tensor projection, Tensor z, Tensor norm, Arena& arena);

// d_hidden[places[i], :] += and d_projection += from dz [b, note_dim] f32, which is overwritten; places are distinct.
void note_vectors_backward(Stream& stream, Tensor dz, Tensor hidden, Tensor places, Tensor projection, Tensor z,
                           Tensor norm, Tensor d_hidden, Tensor d_projection, Arena& arena);

}  // namespace notellm

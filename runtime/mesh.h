// The ranks as a grid: data × tensor.
//
// The ranks of a tensor group are neighbours: they hold one model between them, and compute the same notes together.
// The ranks of a data group hold the same part of the model and compute different notes.
//     rank = data index · tensor size + tensor index
#pragma once

#include "runtime/communicator.h"

namespace notellm {

struct Mesh {
  // Itself a collective of all ranks. Throws Error(usage): the number of ranks is not a multiple of `tensor`.
  Mesh(Communicator& world, int tensor);

  Communicator& world;
  Communicator data, tensor;
};

}  // namespace notellm

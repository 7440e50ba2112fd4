// The ranks as a grid: data × tensor.
//
// The ranks of a tensor group are neighbours: they hold one model between them, and compute the same notes together.
// The ranks of a data group hold the same part of the model and compute different notes.
//     rank = data index · tensor size + tensor index
// What a tensor group sends is several times what a data group sends, so it should be on one host.
#pragma once

#include "runtime/communicator.h"

namespace notellm {

struct Mesh {
  // Itself a collective of all ranks. Throws Error(usage): the number of ranks is not a multiple of `tensor`.
  Mesh(Communicator& world, int tensor);

  Communicator& world;
  Communicator data, tensor;
};

// Of the bytes that a rank has sent to its group of `ranks`, those that left its host, where `here` of them are.
int64_t bytes_to_other_hosts(int64_t bytes_sent, int ranks, int here);
// "the ranks of a tensor group are on different hosts: …", with what that costs; `bytes`: a rank and step.
std::string describe_hosts_cost(int64_t bytes, int tensor);

}  // namespace notellm

// The ranks as a grid: data × tensor.
//
// The ranks of a tensor group are neighbours: they hold one model between them, and compute the same notes together.
// The ranks of a data group hold the same part of the model and compute different notes.
//     rank = data index · tensor size + tensor index
// What a tensor group sends is several times what a data group sends, so it should be on one host.
#pragma once

#include "runtime/communicator.h"

namespace notellm {

// A rank's place in a mesh, also in one that is not there.
struct MeshPlace {
  int data_ranks = 1, tensor_ranks = 1;
  int data_rank = 0, tensor_rank = 0;

  int ranks() const { return data_ranks * tensor_ranks; }
  int rank() const { return data_rank * tensor_ranks + tensor_rank; }
};

// Throws Error(usage): the number of ranks is not a multiple of parallel.tensor.
void check_mesh(int ranks, int tensor);

struct Mesh {
  // Itself a collective of all ranks. Throws as check_mesh does.
  Mesh(Communicator& world, int tensor);

  MeshPlace place() const { return {data.size(), tensor.size(), data.rank(), tensor.rank()}; }

  Communicator& world;
  Communicator data, tensor;
};

// Of the bytes that a rank has sent to its group of `ranks`, those that left its host, where `here` of them are.
int64_t bytes_to_other_hosts(int64_t bytes_sent, int ranks, int here);
// "the ranks of a tensor group are on different hosts: …", with what that costs; `bytes`: a rank and step.
std::string describe_hosts_cost(int64_t bytes, int tensor);

}  // namespace notellm

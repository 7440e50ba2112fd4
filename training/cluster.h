// Machines that a plan is made for (configs/clusters), and how long their collectives probably take.
#pragma once

#include <string>

#include "runtime/config.h"
#include "runtime/traffic.h"

namespace notellm {

struct GpuConfig {
  std::string name = "NVIDIA H100 80GB HBM3";
  double memory_gib = 79.6;
  double reserved_gib = 3;
  double bf16_tflops = 989.4, fp32_tflops = 66.9;
  double memory_gbs = 3350;
  void fields(Fields& f);
};

// Of one direction.
struct LinkConfig {
  double gbs, latency_us;
  void fields(Fields& f);
};

// Shares of the vendor's numbers that a step reaches.
struct AttainableConfig {
  double products = 0.65, attention = 0.4, memory = 0.85, links = 0.8;
  void fields(Fields& f);
};

struct ClusterConfig {
  int nodes = 1, gpus_per_node = 8;
  GpuConfig gpu;
  LinkConfig nvlink{450, 3.4};   // of a GPU, to the others of its node
  LinkConfig network{400, 9.6};  // of a node, to the others
  AttainableConfig attainable;
  void fields(Fields& f);

  int gpus() const { return nodes * gpus_per_node; }
};

// Throws Error(usage), as configurations do.
ClusterConfig read_cluster(const std::string& path);

// A group of ranks as its collectives see the cluster.
struct GroupLinks {
  int ranks = 1, nodes = 1;
  double bytes_per_second = 0;                         // of a ring through all of them, per rank
  double latency_in_node = 0, latency_of_network = 0;  // seconds of one step
};
// Ranks of a group are `stride` apart. Ranks fill nodes one after the other; groups side by side share a node's
// network.
GroupLinks group_links(const ClusterConfig& cluster, int ranks, int stride);

// Seconds of collectives that send so many bytes from each rank. Gathers and reduce-scatters go round a ring: n − 1
// steps, of which nodes − 1 are over the network, and (n − 1)/n of all bytes. An all-reduce is both, or, where that is
// faster, goes up and down a tree: 2·(ranks of a node − 1) steps in a node and 2·log2(nodes) over the network, and
// twice all bytes. (The same steps as in NCCL's own model, src/graph/tuning.cc.)
double collective_seconds(const GroupLinks& group, const Traffic::Item& item);
double collective_seconds(const GroupLinks& group, const Traffic& traffic);  // one after the other

}  // namespace notellm

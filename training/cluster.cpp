#include "training/cluster.h"

#include <algorithm>
#include <cmath>

namespace notellm {

void GpuConfig::fields(Fields& f) {
  f.add("name", "as CUDA gives it", name);
  f.add("memory_gib", "memory", memory_gib, between(1, 1024));
  f.add("reserved_gib", "what CUDA, cuBLAS and NCCL take of it", reserved_gib, between(0, 64));
  f.add("bf16_tflops", "TFLOP/s of dense bf16 products by the vendor", bf16_tflops, between(0.1, 100000));
  f.add("fp32_tflops", "TFLOP/s of f32 by the vendor", fp32_tflops, between(0.1, 100000));
  f.add("memory_gbs", "GB/s of its memory by the vendor", memory_gbs, between(1, 100000));
}

void LinkConfig::fields(Fields& f) {
  f.add("gbs", "GB/s in one direction", gbs, between(0.01, 100000));
  f.add("latency_us", "microseconds of one step of a collective", latency_us, between(0, 100000));
}

void AttainableConfig::fields(Fields& f) {
  f.add("products", "share of the peak that matrix products reach", products, between(0.01, 1));
  f.add("attention", "share of the peak that attention's products reach", attention, between(0.01, 1));
  f.add("memory", "share of the memory's speed that the other ops reach", memory, between(0.01, 1));
  f.add("links", "share of the links' speed that collectives reach", links, between(0.01, 1));
}

void ClusterConfig::fields(Fields& f) {
  f.add("nodes", "hosts", nodes, between(1, 4096));
  f.add("gpus_per_node", "GPUs of a host, a rank each", gpus_per_node, between(1, 64));
  f.section("gpu", gpu);
  f.section("nvlink", nvlink);
  f.section("network", network);
  f.section("attainable", attainable);
}

ClusterConfig read_cluster(const std::string& path) {
  ClusterConfig cluster;
  Fields fields;
  cluster.fields(fields);
  read_config(fields, path, {});
  return cluster;
}

GroupLinks group_links(const ClusterConfig& c, int ranks, int stride) {
  const int in_node = std::clamp(c.gpus_per_node / stride, 1, ranks);
  GroupLinks group;
  group.ranks = ranks;
  group.nodes = (ranks + in_node - 1) / in_node;
  const double nvlink = c.nvlink.gbs, network = c.network.gbs * in_node / c.gpus_per_node;
  group.bytes_per_second = 1e9 * c.attainable.links * (group.nodes == 1 ? nvlink : std::min(nvlink, network));
  group.latency_in_node = 1e-6 * c.nvlink.latency_us;
  group.latency_of_network = 1e-6 * c.network.latency_us;
  return group;
}

double collective_seconds(const GroupLinks& group, const Traffic::Item& item) {
  if (group.ranks == 1) return 0;
  const bool both = item.kind == CollectiveKind::all_reduce;
  const int way = both ? 2 : 1, calls_steps = way * (group.ranks - 1), over_network = way * (group.nodes - 1);
  const auto calls = static_cast<double>(item.calls), bytes = static_cast<double>(item.bytes);
  const double ring =
      calls * ((calls_steps - over_network) * group.latency_in_node + over_network * group.latency_of_network) +
      bytes / group.bytes_per_second;
  if (!both) return ring;
  const double in_node = std::ceil(double(group.ranks) / group.nodes);
  const double latency = 2 * ((in_node - 1) * group.latency_in_node +
                              std::ceil(std::log2(double(group.nodes))) * group.latency_of_network);
  const double all_bytes = bytes * group.ranks / (2.0 * (group.ranks - 1));
  return std::min(ring, calls * latency + 2 * all_bytes / group.bytes_per_second);
}

double collective_seconds(const GroupLinks& group, const Traffic& traffic) {
  double seconds = 0;
  for (const Traffic::Item& item : traffic.items()) seconds += collective_seconds(group, item);
  return seconds;
}

}  // namespace notellm

#include <cstdio>

#include "launch/bench.h"
#include "launch/bench_ops.h"
#include "launch/table.h"
#include "model/parameters.h"
#include "model/tiles.h"
#include "runtime/files.h"

namespace notellm {
namespace {

void print_memory_ops(const std::vector<BenchRow>& rows) {
  Table table("llrrr");
  table.row({"op", "of", "time", "moves", "× copy"});
  for (const BenchRow& row : rows)
    table.row({row.name, row.shape, fmt::format("{:.1f} µs", 1e6 * row.seconds),
               fmt::format("{:.1f} GB/s", row.bytes / row.seconds / 1e9),
               fmt::format("{:.2f}", row.seconds / row.copy_seconds)});
  std::printf("ops bound by memory; moves: what must be read and written; × copy: a copy that moves as much is 1\n%s\n",
              table.text(2).c_str());
}

void print_product_ops(const std::vector<BenchRow>& rows) {
  Table table("llrrr");
  table.row({"op", "of", "time", "products", "share"});
  for (const BenchRow& row : rows)
    table.row({row.name, row.shape, fmt::format("{:.2f} ms", 1e3 * row.seconds), format_flops(row.flops_per_second()),
               fmt::format("{:.0f} %", 100 * row.share_of_large_product())});
  std::printf("ops bound by products; share: of the large product of the same type (InfoNCE's is f32)\n%s",
              table.text(2).c_str());
}

}  // namespace

void bench_kernels(const RunConfig& config, const BenchOptions& options, Communicator& ranks) {
  const int64_t rows = options.rows > 0 ? options.rows : tile_rows_of(config.device),
                vocabulary = padded_vocabulary(config.data.tokenizer.vocabulary + 1);
  const double copy_bandwidth = measure_copy_bandwidth(ranks, config.device);
  OpTimer timer(config, ranks);
  const std::string heading = timer.heading();
  const std::vector<BenchRow> memory_ops = time_memory_ops(timer, config, vocabulary, rows),
                              product_ops = time_product_ops(timer, config, rows);
  nlohmann::ordered_json json = bench_header("bench kernels", config, vocabulary, ranks);
  if (ranks.rank() != 0) return;
  std::printf("%s, %.1f GB/s in a copy of memory\n\n", heading.c_str(), copy_bandwidth / 1e9);
  print_memory_ops(memory_ops);
  print_product_ops(product_ops);
  if (options.json.empty()) return;
  json["tile_rows"] = rows;
  json["large_product"] = timer.products();
  json["copy_bytes_per_second"] = copy_bandwidth;
  for (const auto* found : {&memory_ops, &product_ops})
    for (const BenchRow& row : *found) json["rows"].push_back(row.json());
  write_file(options.json, json.dump(2) + "\n");
}

}  // namespace notellm

// What the benchmarks found, for the tables and as a file.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/measure.h"
#include "runtime/communicator.h"
#include "training/config.h"

namespace notellm {

// One time with what it is compared with; 0 or nothing where it has none. Rates are one rank's, of the slowest.
struct BenchRow {
  std::string name = {}, kind = {};  // kind: "memory", "product", "step" or "part" (of a step)
  std::string shape = {};            // of its operands, in words
  double seconds = 0;                // of one call
  double bytes = 0;                  // that it must read and write at least
  double copy_seconds = 0;           // of a plain copy that reads and writes as many
  double flops = 0;                  // of its products
  double large_product = 0;          // FLOP/s of a large product of the same type
  std::optional<double> peak = {};   // FLOP/s by the vendor

  double flops_per_second() const { return flops / seconds; }
  double share_of_large_product() const { return flops_per_second() / large_product; }
  nlohmann::ordered_json json() const;
};

// Beginning of a result file: program, commit, time, device, precision, model, ranks. vocabulary: rows of the
// embedding.
nlohmann::ordered_json bench_header(const std::string& command, const RunConfig& config, int64_t vocabulary,
                                    Communicator& ranks);
nlohmann::ordered_json product_json(const LargeProduct& product, std::optional<double> peak);

// "ranks: 2, bf16, Xeon …; each rank: 270 GFLOP/s in a 1024³ product"
std::string bench_heading(const RunConfig& config, Communicator& ranks);
// "680 TFLOP/s in an 8192³ product, 69 % of the vendor's 989 TFLOP/s"
std::string product_text(const LargeProduct& product, std::optional<double> peak);

}  // namespace notellm

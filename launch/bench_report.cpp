#include "launch/bench_report.h"

#include <fmt/chrono.h>
#include <omp.h>

#include <ctime>

#include "launch/commit.h"
#include "launch/device_facts.h"
#include "launch/table.h"

namespace notellm {

nlohmann::ordered_json BenchRow::json() const {
  nlohmann::ordered_json row = {{"name", name}, {"kind", kind}};
  if (!shape.empty()) row["shape"] = shape;
  row["seconds"] = seconds;
  if (bytes > 0) {
    row["bytes"] = bytes;
    row["bytes_per_second"] = bytes / seconds;
    row["copy_seconds"] = copy_seconds;
    row["times_copy"] = seconds / copy_seconds;
  }
  if (flops > 0) {
    row["flops"] = flops;
    row["flops_per_second"] = flops_per_second();
    row["share_of_large_product"] = share_of_large_product();
    if (peak) row["share_of_peak"] = flops_per_second() / *peak;
  }
  return row;
}

nlohmann::ordered_json bench_header(const std::string& command, const RunConfig& config, int64_t vocabulary,
                                    Communicator& ranks) {
  const ModelConfig& m = config.model;
  const std::string now = fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)));
  return {{"command", command},
          {"program", NOTELLM_VERSION},
          {"commit", NOTELLM_COMMIT},
          {"time", now},
          {"device", config.device == Device::cpu ? "cpu" : "cuda"},
          {"device_name", device_name(config.device)},
          {"precision", config.precision == Precision::bf16 ? "bf16" : "fp32"},
          {"ranks", ranks.size()},
          {"threads_per_rank", omp_get_max_threads()},
          {"model",
           {{"dim", m.dim},
            {"layers", m.layers},
            {"heads", m.heads},
            {"kv_heads", m.kv_heads},
            {"head_dim", m.head_dim},
            {"ffn", m.ffn},
            {"note_dim", m.note_dim},
            {"context", m.context},
            {"vocabulary", vocabulary}}}};
}

nlohmann::ordered_json product_json(const LargeProduct& product, std::optional<double> peak) {
  nlohmann::ordered_json json = {{"n", product.n}, {"flops_per_second", product.flops_per_second}};
  json["peak_flops_per_second"] = peak ? nlohmann::ordered_json(*peak) : nlohmann::ordered_json();
  return json;
}

std::string bench_heading(const RunConfig& config, Communicator& ranks) {
  return fmt::format("ranks: {}, {}, {}", ranks.size(), name_of(config.compute()), device_name(config.device));
}

std::string product_text(const LargeProduct& product, std::optional<double> peak) {
  std::string text = fmt::format("{} in a {}³ product", format_flops(product.flops_per_second), product.n);
  if (peak)
    text += fmt::format(", {:.0f} % of the vendor's {}", 100 * product.flops_per_second / *peak, format_flops(*peak));
  return text;
}

}  // namespace notellm

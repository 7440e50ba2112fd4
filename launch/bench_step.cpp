#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>

#include "data_pipeline/shards.h"
#include "launch/bench.h"
#include "launch/bench_report.h"
#include "launch/device_facts.h"
#include "launch/table.h"
#include "runtime/files.h"
#include "runtime/progress.h"
#include "runtime/stopwatch.h"
#include "training/state.h"
#include "training/step.h"

namespace notellm {
namespace {

// Everything that is printed; sums over ranks, parts as a mean over them.
struct Report {
  int64_t notes = 0, tokens = 0, unshared_tokens = 0, labels = 0;  // of all timed steps
  double seconds = 0, fastest = std::numeric_limits<double>::infinity();
  int steps = 0, micro_batches = 1, ranks = 1;
  StepFlops flops;             // of all timed steps
  LargeProduct product;        // of this rank
  double large_product = 0;    // of all ranks together, FLOP/s
  std::optional<double> peak;  // of a rank's device, FLOP/s
  StepParts parts;             // of all timed steps
  double optimizer_seconds = 0;

  double step_seconds() const { return seconds / steps; }
  double flops_per_second() const { return flops.total() / seconds; }
  double model_flops_per_second() const { return flops.model() / seconds; }
  double mfu() const { return model_flops_per_second() / (*peak * ranks); }
  // Name and seconds a step.
  std::vector<std::pair<std::string, double>> part_list() const {
    return {{"plan and pack", parts.packing / steps},
            {"forward", parts.forward / steps},
            {"InfoNCE over all ranks", parts.contrastive / steps},
            {"LM head and token loss", parts.token / steps},
            {"backward", parts.backward / steps},
            {"all-reduce of gradients", parts.reduce / steps},
            {"optimizer", optimizer_seconds / steps}};
  }
  void add(const StepResult& result, double step_seconds);
};

void Report::add(const StepResult& result, double step_seconds) {
  notes += result.notes;
  tokens += result.tokens;
  unshared_tokens += result.unshared_tokens;
  labels += result.labels;
  flops += result.flops;
  parts += result.seconds;
  seconds += step_seconds;
  fastest = std::min(fastest, step_seconds);
}

Report measure(const RunConfig& config, const BenchStepOptions& options, const Shards& shards, Communicator& ranks) {
  Report report;
  report.ranks = ranks.size();
  report.steps = options.steps;
  report.product = measure_large_product(ranks, config.compute(), config.device);
  report.peak = device_peak(config.device, config.compute());
  Mesh mesh(ranks, config.parallel.tensor);
  TrainingState state(config, shards.notes.prompt, mesh);
  state.start_anew(config, shards.notes.prompt);
  TrainingStep step(config, shards.notes, shards.pairs, mesh);
  report.micro_batches = step.micro_batches();
  Stream stream(config.device);
  Progress progress("steps", options.warmup + options.steps, ranks.rank() == 0);
  for (int i = 0; i < options.warmup + options.steps; ++i) {
    ranks.barrier("begin of a step");
    Stopwatch watch;
    const StepResult result = step.run(stream, i, state, state.tau(stream));
    watch.lap();
    state.update(stream, learning_rate(config.optimizer, i, config.train.steps), i + 1);
    stream.synchronize();
    const double optimizer_seconds = watch.lap(), seconds = ranks.max("slowest rank", watch.seconds());
    progress.advance();
    if (i < options.warmup) continue;
    report.add(result, seconds);
    report.optimizer_seconds += optimizer_seconds;
  }
  StepParts& p = report.parts;
  double sums[] = {report.product.flops_per_second,
                   report.optimizer_seconds,
                   p.packing,
                   p.forward,
                   p.contrastive,
                   p.token,
                   p.backward,
                   p.reduce};
  ranks.all_reduce_sum("sum over ranks", Tensor::of(sums, {std::ssize(sums)}));
  for (double& sum : std::span(sums).subspan(1)) sum /= ranks.size();
  report.large_product = sums[0];
  report.optimizer_seconds = sums[1];
  p = {sums[2], sums[3], sums[4], sums[5], sums[6], sums[7]};
  return report;
}

// What has been computed twice to save memory counts above, and not here.
std::string mfu_text(const Report& r) {
  if (!r.peak) return fmt::format("unknown: no peak of a {} at this precision is known", device_name(Device::cuda));
  return fmt::format("{:.1f} %: the model's {} of the vendor's {} a GPU", 100 * r.mfu(),
                     format_flops(r.model_flops_per_second()), format_flops(*r.peak));
}

void print_table(const Report& r, const RunConfig& config, const std::string& source) {
  const auto per_step = [&](int64_t n) { return format_count(n / r.steps); };
  const double giga = 1e9 * r.steps;  // of all steps to one
  Table table("ll");
  table.row({"notes", source});
  table.row({"precision", config.precision == Precision::bf16 ? "bf16" : "fp32"});
  table.row({"ranks", std::to_string(r.ranks)});
  table.row({"a step", fmt::format("{} notes, {} tokens ({} without shared prefixes), {} labels", per_step(r.notes),
                                   per_step(r.tokens), per_step(r.unshared_tokens), per_step(r.labels))});
  table.row(
      {"time", fmt::format("{:.3f} s a step (mean of {}; fastest {:.3f} s)", r.step_seconds(), r.steps, r.fastest)});
  table.row({"rate", fmt::format("{} notes/s, {} tokens/s", format_count(std::llround(r.notes / r.seconds)),
                                 format_count(std::llround(r.tokens / r.seconds)))});
  table.row(
      {"products", fmt::format("{:.1f} GFLOP a step (layers {:.1f}, attention {:.1f}, heads {:.1f}, InfoNCE {:.1f})",
                               r.flops.total() / giga, r.flops.layers / giga, r.flops.attention / giga,
                               r.flops.heads / giga, r.flops.infonce / giga)});
  table.row(
      {"", fmt::format("{} = {:.0f} % of the {} of a {}³ product here", format_flops(r.flops_per_second()),
                       100 * r.flops_per_second() / r.large_product, format_flops(r.large_product), r.product.n)});
  if (config.device != Device::cpu) table.row({"MFU", mfu_text(r)});
  std::printf("%s\n", table.text().c_str());

  std::printf("parts of a step%s%s; %s:\n",
              r.micro_batches == 1 ? "" : fmt::format(", {} micro-batches", r.micro_batches).c_str(),
              r.ranks == 1 ? "" : ", mean of the ranks",
              config.device == Device::cpu ? "waiting for other ranks counts where the wait is"
                                           : "of the host, which enqueues them and waits for the GPU in the end");
  Table parts("lrr");
  for (const auto& [name, seconds] : r.part_list())
    parts.row(
        {name, fmt::format("{:.1f} ms", 1e3 * seconds), fmt::format("{:.1f} %", 100 * seconds / r.step_seconds())});
  std::printf("%s", parts.text(2).c_str());
}

BenchRow step_row(const Report& r) {
  return {.name = "step",
          .kind = "step",
          .seconds = r.step_seconds(),
          .flops = r.flops.total() / r.steps,
          .large_product = r.large_product,
          .peak = r.peak ? std::optional(*r.peak * r.ranks) : std::nullopt};
}

// `json` begins as bench_header.
std::string result_file(const Report& r, const std::string& source, nlohmann::ordered_json json) {
  json["large_product"] = product_json(r.product, r.peak);
  json["step"] = {{"notes_from", source},
                  {"steps", r.steps},
                  {"micro_batches", r.micro_batches},
                  {"notes_per_step", r.notes / r.steps},
                  {"tokens_per_step", r.tokens / r.steps},
                  {"unshared_tokens_per_step", r.unshared_tokens / r.steps},
                  {"labels_per_step", r.labels / r.steps},
                  {"seconds_per_step", r.step_seconds()},
                  {"fastest_step_seconds", r.fastest},
                  {"notes_per_second", r.notes / r.seconds},
                  {"tokens_per_second", r.tokens / r.seconds},
                  {"flops_per_step", r.flops.total() / r.steps},
                  {"model_flops_per_step", r.flops.model() / r.steps}};
  json["step"]["mfu"] = r.peak ? nlohmann::ordered_json(r.mfu()) : nlohmann::ordered_json();
  json["rows"].push_back(step_row(r).json());
  for (const auto& [name, seconds] : r.part_list()) {
    json["rows"].push_back(BenchRow{.name = name, .kind = "part", .seconds = seconds}.json());
    json["rows"].back()["share_of_step"] = seconds / r.step_seconds();
  }
  return json.dump(2) + "\n";
}

}  // namespace

void bench_step(const RunConfig& config, const BenchStepOptions& options, Communicator& ranks) {
  const Shards shards = options.synthetic ? synthetic_shards(config) : read_shards(config.data.shards);
  const Report report = measure(config, options, shards, ranks);
  const auto header = bench_header("bench step", config, padded_vocabulary(shards.notes.prompt.vocabulary), ranks);
  if (ranks.rank() != 0) return;
  const std::string source = options.synthetic ? "random tokens" : config.data.shards;
  print_table(report, config, source);
  if (!options.json.empty()) write_file(options.json, result_file(report, source, header));
}

}  // namespace notellm

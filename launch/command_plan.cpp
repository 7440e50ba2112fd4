#include <cstdio>

#include "data_pipeline/shards.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "launch/plan_report.h"
#include "runtime/files.h"

namespace notellm {
namespace {

struct Options : ConfigOptions {
  std::string cluster, json;
  int ranks = 0, best = 10;
};

// What a run would say of the configuration on so many ranks: the first of each kind.
std::vector<std::string> problems_of(const RunConfig& config, int ranks) {
  std::vector<std::string> problems;
  const auto check = [&](const auto& work) {
    try {
      work();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage) throw;
      problems.emplace_back(error.what());
    }
  };
  const int tensor = config.parallel.tensor;
  check([&] { check_mesh(ranks, tensor); });
  check([&] { config_of_part(config.model, tensor); });
  if (ranks >= tensor) check([&] { pairs_per_group(config, ranks / tensor, tensor); });
  return problems;
}

PlanReport make_report(const Options& options, RunConfig config, int ranks) {
  PlanReport report;
  report.shown = options.best;
  report.cluster_file = options.cluster;
  if (!options.cluster.empty()) {
    report.cluster = read_cluster(options.cluster);
    config.device = Device::cuda;  // its tiles
    ranks = report.cluster->gpus();
  }
  report.ranks = options.ranks > 0 ? options.ranks : ranks;
  const bool prepared = has_shards(config.data.shards);
  const Shards shards = prepared ? read_shards(config.data.shards) : synthetic_shards(config);
  report.notes_from = prepared ? config.data.shards : "made up, as long as data.prompt allows";
  report.notes = note_statistics(config, shards.notes, shards.pairs);
  report.problems = problems_of(config, report.ranks);
  report.config = config;
  const int tensor = config.parallel.tensor;
  if (report.problems.empty())
    report.plan = make_plan(config, report.notes, fullest_place(report.ranks / tensor, tensor));
  if (!report.cluster) return report;
  if (report.plan) report.prediction = predict(config, report.notes, *report.plan, *report.cluster);
  report.search = search_plans(config, report.notes, *report.cluster, report.ranks);
  return report;
}

constexpr const char* footer =
    R"(Memory of a rank by kind, what it sends by collective, and sizes that do not divide. With a cluster also
the predicted time of a step, and the best ways to share the run out over its GPUs: predictions of a
model (docs/scaling.md), not measurements. Notes are those of data.shards, or, where there are none, made
up in the lengths of data.prompt. Computes nothing else, and needs no GPU; workspace of cuDNN is left out.
Example: notellm plan configs/llama2_7b.yaml --cluster configs/clusters/dgx_h100.yaml --ranks 64)";

}  // namespace

void add_plan(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("plan", "memory, messages and predicted time on ranks that are not there");
  command->footer(footer);
  auto options = std::make_shared<Options>();
  options->add_to(*command);
  command->add_option("--cluster", options->cluster, "YAML file of the machines (configs/clusters); default: CPU ranks")
      ->type_name("FILE");
  command
      ->add_option("--ranks", options->ranks,
                   "ranks to plan for; default: the cluster's GPUs, or the ranks that run this")
      ->type_name("N")
      ->check(CLI::Range(1, 4096).description(""));
  command->add_option("--best", options->best, "how many of the best ways to show")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000).description(""));
  command->add_option("--json", options->json, "write the numbers to this file too")->type_name("FILE");
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      const RunConfig config = options->read(ranks);
      if (ranks.rank() != 0) return 0;
      if (!options->json.empty()) require_writable(options->json);
      const PlanReport report = make_report(*options, config, ranks.size());
      std::printf("%s", report.text().c_str());
      if (!options->json.empty()) write_file(options->json, report.json().dump(2) + "\n");
      return 0;
    };
  });
}

}  // namespace notellm

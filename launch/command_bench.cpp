#include "launch/bench.h"
#include "launch/commands.h"
#include "runtime/files.h"

namespace notellm {
namespace {

template <class Bench>
struct Options : ConfigOptions {
  Bench bench;
};

void add_json(CLI::App& command, std::string& path) {
  command.add_option("--json", path, "write the numbers to this file too")->type_name("FILE");
}

// Before the work, not after it.
RunConfig read_config(const ConfigOptions& options, const std::string& json, Communicator& ranks) {
  if (!json.empty() && ranks.rank() == 0) require_writable(json);
  return options.read_for_device(ranks);
}

void add_step(CLI::App& bench, Action& chosen) {
  CLI::App* command = bench.add_subcommand("step", "times training steps, alone or under mpirun; changes no run");
  command->footer(R"(Trains a freshly initialised model for some steps and throws it away. Prints notes/s and tokens/s,
the operations of the matrix products that a step computes (counted from its batch) with the share
that they reach of the speed of a large product, on GPUs whose peak is known the model's FLOP/s as a
share of it (MFU), and the time of each part of a step, run one by one.
Example: mpirun -n 2 notellm bench step configs/demo.yaml --json step.json)");
  auto options = std::make_shared<Options<BenchStepOptions>>();
  options->add_to(*command);
  command->add_option("--steps", options->bench.steps, "timed steps")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000).description(""));
  command->add_option("--warmup", options->bench.warmup, "steps before, not timed")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000).description(""));
  command->add_flag("--synthetic", options->bench.synthetic,
                    "notes of random tokens, as long as the configuration's, instead of data.shards");
  add_json(*command, options->bench.json);
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      bench_step(read_config(*options, options->bench.json, ranks), options->bench, ranks);
      return 0;
    };
  });
}

using OpBench = void (*)(const RunConfig&, const BenchOptions&, Communicator&);

void add_ops(CLI::App& bench, Action& chosen, const char* name, const char* what, const char* footer, OpBench run) {
  CLI::App* command = bench.add_subcommand(name, what);
  command->footer(footer);
  auto options = std::make_shared<Options<BenchOptions>>();
  options->add_to(*command);
  command->add_option("--rows", options->bench.rows, "rows of a tile; default: a step's, 512 on the CPU, 8192 on CUDA")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20).description(""));
  add_json(*command, options->bench.json);
  command->callback([options, run, &chosen] {
    chosen = [options, run](Communicator& ranks) {
      run(read_config(*options, options->bench.json, ranks), options->bench, ranks);
      return 0;
    };
  });
}

constexpr const char* kernels_footer =
    R"(Random numbers in the configuration's shapes and precision, on its device. Ops that only move memory
are compared with a copy that moves as much, products with one large product.
Example: notellm bench kernels configs/demo.yaml --set precision=bf16 --json kernels.json)";
constexpr const char* gemm_footer =
    R"(Each product forward, to its input and to its weights, with random numbers in the configuration's
precision, on its device: FLOP/s, and the share of the speed of one large product.
Example: notellm bench gemm configs/bench_step.yaml --set device=cuda --json gemm.json)";

}  // namespace

void add_bench(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("bench", "times of the training step, the products and the ops on this machine");
  command->require_subcommand(1);
  add_step(*command, chosen);
  add_ops(*command, chosen, "gemm", "times the matrix products of the model on a tile of rows", gemm_footer,
          bench_gemm);
  add_ops(*command, chosen, "kernels", "times each op on a tile of rows", kernels_footer, bench_kernels);
}

}  // namespace notellm

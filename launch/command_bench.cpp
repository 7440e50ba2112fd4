#include "launch/bench.h"
#include "launch/commands.h"

namespace notellm {
namespace {

struct StepOptions : ConfigOptions {
  BenchStepOptions bench;
};

void add_step(CLI::App& bench, Action& chosen) {
  CLI::App* command = bench.add_subcommand("step", "times training steps, alone or under mpirun; changes no file");
  command->footer(R"(Trains a freshly initialised model for some steps and throws it away. Prints notes/s and tokens/s,
the operations of the matrix products that a step computes (counted from its batch) with the share
that they reach of the speed of a large product, and the time of each part of a step, run one by one.
Example: mpirun -n 2 notellm bench step configs/demo.yaml)");
  auto options = std::make_shared<StepOptions>();
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
  command->add_flag("--json", options->bench.json, "print JSON instead of tables");
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      bench_step(options->read_for_device(ranks), options->bench, ranks);
      return 0;
    };
  });
}

void add_kernels(CLI::App& bench, Action& chosen) {
  CLI::App* command =
      bench.add_subcommand("kernels", "times the matrix products and ops of the model on a tile of rows");
  command->footer(R"(Random numbers in the configuration's shapes and precision. Products are compared with a large
product of 1024³, ops that only move memory with a copy that moves as much.)");
  auto options = std::make_shared<ConfigOptions>();
  options->add_to(*command);
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      const RunConfig config = options->read(ranks);
      if (config.device != Device::cpu)
        fail(ErrorKind::usage, "bench kernels times the CPU's ops; a GPU's are timed by its profiler: set device: cpu");
      bench_kernels(config, ranks);
      return 0;
    };
  });
}

}  // namespace

void add_bench(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("bench", "times of the training step and of the kernels on this machine");
  command->require_subcommand(1);
  add_step(*command, chosen);
  add_kernels(*command, chosen);
}

}  // namespace notellm

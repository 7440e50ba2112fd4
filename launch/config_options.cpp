#include "launch/commands.h"
#include "runtime/threads.h"

namespace notellm {

void ConfigOptions::add_to(CLI::App& command, bool required) {
  command.add_option("config", path, "YAML file of the run (docs/configuration.md, or 'notellm train --keys')")
      ->required(required)
      ->type_name("CONFIG");
  command.add_option("--set", overrides, "override keys: --set train.steps=100 optimizer.learning_rate=1e-3")
      ->type_name("KEY=VALUE");
}

RunConfig ConfigOptions::read(Communicator& ranks) const {
  const RunConfig config = read_run_config(path, overrides);
  set_threads(config.threads, ranks);
  return config;
}

RunConfig ConfigOptions::read_for_device(Communicator& ranks) const {
  const RunConfig config = read(ranks);
  choose_device(config.device, ranks.local_rank(), ranks.local_size());
  return config;
}

}  // namespace notellm

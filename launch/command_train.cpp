#include <cstdio>

#include "launch/commands.h"
#include "training/trainer.h"

namespace notellm {
namespace {

struct TrainOptions : ConfigOptions {
  std::string resume = "never";
};

// All keys of a configuration file with their defaults.
void print_keys() {
  RunConfig config;
  Fields fields;
  config.fields(fields);
  std::printf("%s", describe_config(fields).c_str());
}

}  // namespace

void add_train(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("train", "the joint objective on prepared shards; alone or under mpirun");
  auto options = std::make_shared<TrainOptions>();
  options->add_to(*command);
  command
      ->add_option("--resume", options->resume,
                   "never, auto (the newest checkpoint of the run, if any), or a checkpoint's folder")
      ->capture_default_str();
  command
      ->add_flag_callback(
          "--keys",
          [] {
            print_keys();
            throw CLI::Success();
          },
          "print all keys of the configuration with defaults, and end")
      ->trigger_on_parse();
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      const RunConfig config = options->read_for_device(ranks);
      return train(config, options->resume, ranks) == TrainingEnd::preempted ? preempted_exit_code : 0;
    };
  });
}

}  // namespace notellm

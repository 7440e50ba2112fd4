// The subcommands: each adds itself to the command line and, when chosen, leaves what to run.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "runtime/communicator.h"
#include "training/config.h"

namespace notellm {

// What the command line chose: runs on every rank and returns the exit code.
using Action = std::function<int(Communicator& ranks)>;

void add_prepare(CLI::App& app, Action& chosen);
void add_train(CLI::App& app, Action& chosen);
void add_evaluate(CLI::App& app, Action& chosen);
void add_embed(CLI::App& app, Action& chosen);
void add_neighbors(CLI::App& app, Action& chosen);
void add_import(CLI::App& app, Action& chosen);
void add_export(CLI::App& app, Action& chosen);
void add_generate(CLI::App& app, Action& chosen);
void add_bench(CLI::App& app, Action& chosen);
void add_inspect(CLI::App& app, Action& chosen);
void add_plan(CLI::App& app, Action& chosen);
void add_doctor(CLI::App& app, Action& chosen);

// CONFIG and --set, which most commands take.
struct ConfigOptions {
  std::string path;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command, bool required = true);
  // Reads the configuration and sets this rank's threads.
  RunConfig read(Communicator& ranks) const;
  // … and chooses this rank's GPU, where `device` asks for one: for commands that compute with the model.
  RunConfig read_for_device(Communicator& ranks) const;
};

}  // namespace notellm

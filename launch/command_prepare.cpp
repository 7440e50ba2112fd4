#include <cstdio>

#include "data_pipeline/prepare.h"
#include "launch/commands.h"

namespace notellm {

void add_prepare(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("prepare", "notes and clicks to shards of tokenized notes and of pairs");
  auto options = std::make_shared<ConfigOptions>();
  options->add_to(*command);
  command->callback([options, &chosen] {
    chosen = [options](Communicator& ranks) {
      const RunConfig config = options->read(ranks);
      const PrepareReport report = prepare(config.data, ranks);
      if (ranks.rank() == 0) std::printf("%s", report.describe().c_str());
      return 0;
    };
  });
}

}  // namespace notellm

// notellm: trains note-recommendation language models. One file per subcommand: command_*.cpp.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <thread>

#include "launch/commands.h"
#include "runtime/edit_distance.h"
#include "runtime/log.h"
#include "runtime/watchdog.h"

namespace notellm {

namespace {

constexpr const char* exit_codes =
    "Exit codes: 0 done; 1 defect of the program, or no memory; 2 command line or configuration; 3 data; 4 files;\n"
    "5 checkpoint; 6 another rank; 7 training diverged; 8 the GPU; 85 ended by TERM or USR1 after saving: queue again\n"
    "(docs/failure.md).";

// How long a rank waits before it says what went wrong, so that the last word is the first cause. What is wrong with
// the input is wrong on every rank: rank 0 says it and ends all; another rank speaks only when it is alone with its
// error. That another rank has failed is said only when that one does not.
std::chrono::seconds patience(int rank, int code) {
  if (code == static_cast<int>(ErrorKind::internal)) return std::chrono::seconds(0);
  return std::chrono::seconds((rank == 0 ? 0 : 2) + (code == static_cast<int>(ErrorKind::peer) ? 3 : 0));
}

int run(const Action& chosen) {
  int code = 0;
  std::string message;
  std::optional<Communicator> ranks;
  try {
    ranks = Communicator::world();
    set_up_logging(ranks->rank(), ranks->size());
    return chosen(*ranks);
  } catch (const Error& error) {
    code = static_cast<int>(error.kind());
    message = error.what();
  } catch (const std::filesystem::filesystem_error& error) {
    code = static_cast<int>(ErrorKind::io);
    message = error.what();
  } catch (const std::exception& error) {
    code = static_cast<int>(ErrorKind::internal);
    message = error.what();
  }
  if (ranks && ranks->size() == 1) {
    std::fprintf(stderr, "notellm: error%s: %s\n", whereabouts().c_str(), message.c_str());
    return code;
  }
  leave_watchdog();
  if (ranks) std::this_thread::sleep_for(patience(ranks->rank(), code));
  const std::string who = ranks ? fmt::format("rank {}: ", ranks->rank()) : "";
  std::fprintf(stderr, "notellm: %serror%s: %s\n", who.c_str(), whereabouts().c_str(), message.c_str());
  Communicator::abort(code);
}

// The word that stands where a subcommand is due, and the name that is nearest to it.
CLI::ParseError unknown_word(const CLI::App& command, const std::string& word) {
  const auto error = [](const std::string& text) { return CLI::ParseError(text, CLI::ExitCodes::ExtrasError); };
  if (word.starts_with('-')) return error(fmt::format("unknown option '{}'", word));
  std::vector<std::string> names;
  for (const CLI::App* known : command.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(known->get_name());
  const auto distance = [&](const std::string& name) { return edit_distance(word, name); };
  const std::string& nearest = *std::ranges::min_element(names, {}, distance);
  const std::string before = command.get_parent() ? command.get_name() + " " : "";
  const bool near = 2 * distance(nearest) <= std::ssize(word);
  return error(fmt::format("unknown command '{}{}'; {}", before, word,
                           near ? fmt::format("did you mean '{}{}'?", before, nearest)
                                : fmt::format("known are {}", fmt::join(names, ", "))));
}

// CLI11 says that a subcommand is missing; where a word stands in its place, that word is what is wrong.
void explain(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  const std::vector<std::string> words = command->remaining();
  const bool has_word = command->get_require_subcommand_min() > 0 && !words.empty();
  app.exit(has_word ? unknown_word(*command, words.front()) : error);
}

}  // namespace
}  // namespace notellm

int main(int argc, char** argv) {
  using namespace notellm;
  CLI::App app("notellm trains note-recommendation language models: notes and clicks in, a note encoder out.",
               "notellm");
  app.footer(exit_codes);
  app.require_subcommand(1);
  app.set_version_flag("--version", NOTELLM_VERSION);
  app.get_formatter()->column_width(36);
  Action chosen;
  for (auto add : {add_prepare, add_import, add_train, add_evaluate, add_embed, add_neighbors, add_generate, add_export,
                   add_bench, add_plan, add_inspect, add_doctor})
    add(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    explain(app, error);
    return static_cast<int>(ErrorKind::usage);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ErrorKind::usage);
  }
  return chosen ? run(chosen) : 0;
}

#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "evaluation/note_generator.h"
#include "launch/asked_notes.h"
#include "launch/commands.h"
#include "launch/new_notes.h"
#include "launch/trained_model.h"
#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/mesh.h"
#include "runtime/progress.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

struct GenerateOptions : ConfigOptions {
  std::string checkpoint, notes, output, task = "category";
  std::vector<std::string> ids, texts, contents;
  int topics = 0, max_tokens = 0;
  double temperature = 0;
  Sampling sampling;
  uint64_t seed = 1;
  bool constrain = false, vectors = false;

  bool of_hashtags() const { return task == "hashtags"; }
};

// A category or hashtag has at most data.prompt.max_output_tokens tokens; hashtags are several of them.
constexpr int default_max_tokens = 64;

void check(const GenerateOptions& options) {
  if (options.of_hashtags() && options.constrain)
    fail(ErrorKind::usage, "--constrain is for --task category: hashtags are no closed set");
  if (options.of_hashtags() && options.vectors)
    fail(ErrorKind::usage, "--vectors is for --task category: a note's vector is read from the category prompt");
  if (!options.of_hashtags() && options.topics > 0)
    fail(ErrorKind::usage, "--topics is for --task hashtags: a note has one category");
  const bool draws = options.sampling.top_k != 0 || options.sampling.top_p != 1;
  if (draws && options.temperature == 0)
    fail(ErrorKind::usage, "--top-k and --top-p need --temperature above 0: without it the likeliest token is taken");
}

// What is asked for: the table that its notes are of, and their rows.
struct Asked {
  NoteTable fresh;  // where notes are not of the shards
  std::vector<int32_t> rows;
  bool of_shards = true;
};

Asked asked_notes(const GenerateOptions& options, const std::string& shards, const NoteTable& known) {
  Asked asked;
  asked.of_shards = options.notes.empty() && options.texts.empty() && options.contents.empty();
  if (!options.notes.empty())
    asked.fresh = tokenize_file(shards, known, options.notes);
  else if (!asked.of_shards)
    asked.fresh = tokenize_notes(shards, known, notes_of_texts(options.texts, options.contents));
  if (!options.ids.empty()) {
    asked.rows = rows_of_ids(known, options.ids);
    return asked;
  }
  asked.rows.resize(static_cast<size_t>(asked.of_shards ? known.size() : asked.fresh.size()));
  std::iota(asked.rows.begin(), asked.rows.end(), 0);
  return asked;
}

std::vector<NoteExample> examples_of(const GenerateOptions& options, const NoteTable& notes,
                                     const std::vector<int32_t>& rows) {
  const int64_t most = notes.prompt.hashtag_instruction.size();
  if (options.of_hashtags() && (most == 0 || options.topics > most))
    fail(ErrorKind::usage, "--topics {}: the prompts of these shards are for at most {} (data.prompt.max_hashtags)",
         options.topics, most);
  std::vector<NoteExample> examples;
  for (const int32_t row : rows) {
    NoteExample example{row, options.of_hashtags() ? Task::hashtags : Task::category, {}, Until::guidance};
    if (options.of_hashtags()) example.topics.resize(static_cast<size_t>(options.topics > 0 ? options.topics : most));
    examples.push_back(std::move(example));
  }
  return examples;
}

// One JSON object a line (docs/data_formats.md).
std::string lines_of(const GenerateOptions& options, const OutputReader& reader, const NoteTable& notes,
                     const std::vector<int32_t>& rows, const std::vector<Generated>& outputs, Tensor vectors) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Task task = options.of_hashtags() ? Task::hashtags : Task::category;
    const std::vector<std::string> labels = reader.labels(task, outputs[i].tokens);
    nlohmann::ordered_json line = {{"id", notes.ids[rows[i]]}, {"title", notes.titles[rows[i]]}};
    if (options.of_hashtags())
      line["hashtags"] = labels;
    else
      line["category"] = labels.empty() ? "" : labels[0];
    line["ended"] = outputs[i].ended;
    if (!vectors.empty()) {
      const auto vector = vectors.slice(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1).span<float>();
      line["vector"] = std::vector<float>(vector.begin(), vector.end());
    }
    text += line.dump() + "\n";
  }
  return text;
}

GenerationConfig generation_config(const GenerateOptions& options, const TokenTrie* closed) {
  GenerationConfig config{.max_tokens = options.max_tokens > 0 ? options.max_tokens : default_max_tokens,
                          .greedy = options.temperature == 0,
                          .sampling = options.sampling,
                          .seed = options.seed};
  if (!config.greedy) config.sampling.temperature = static_cast<float>(options.temperature);
  if (closed && options.max_tokens == 0)
    config.max_tokens = std::max(config.max_tokens, static_cast<int>(closed->longest()));
  return config;
}

void log_speed(const std::vector<Generated>& outputs, double seconds) {
  int64_t tokens = 0, cut = 0;
  for (const Generated& output : outputs) tokens += std::ssize(output.tokens) + 1, cut += !output.ended;
  const auto notes = static_cast<double>(outputs.size());
  spdlog::info("{} notes in {}: {:.1f} notes/s, {:.1f} tokens/s", format_count(std::ssize(outputs)),
               format_seconds(seconds), notes / seconds, static_cast<double>(tokens) / seconds);
  if (cut > 0) spdlog::warn("{} of the outputs were cut at --max-tokens or the model's context", format_count(cut));
}

int generate(const GenerateOptions& options, Communicator& ranks) {
  check(options);
  if (!options.output.empty() && ranks.rank() == 0) require_writable(options.output);  // before the work
  const RunConfig config = options.read_for_device(ranks);
  Mesh mesh = mesh_of(config, ranks);
  const TrainedModel model = TrainedModel::load(config, options.checkpoint, mesh);
  const NoteTable& known = model.shards.notes;
  const Asked asked = asked_notes(options, config.data.shards, known);
  const NoteTable& notes = asked.of_shards ? known : asked.fresh;
  const OutputReader reader(config.data.shards, known);
  std::optional<TokenTrie> closed;
  if (options.constrain) closed = category_trie(known);
  const TokenTrie* only = closed ? &*closed : nullptr;

  const std::vector<NoteExample> examples = examples_of(options, notes, asked.rows);
  const auto count = std::ssize(examples);
  Buffer memory(options.vectors ? count * model.config.model.note_dim * 4 : 0);
  const Tensor vectors = options.vectors ? memory.tensor(DType::f32, {count, model.config.model.note_dim}) : Tensor();
  Stream stream(config.device);
  NoteGenerator generator(model.config.model, config.compute(), generation_config(options, only),
                          config.evaluate.batch_notes, config.device, &mesh.tensor);
  const Stopwatch watch;
  const std::vector<Generated> outputs =
      generator.generate(stream, mesh.data, model.weights, notes, examples, only, vectors, ranks.rank() == 0);
  if (ranks.rank() != 0) return 0;
  log_speed(outputs, watch.seconds());
  const std::string text = lines_of(options, reader, notes, asked.rows, outputs, vectors);
  if (options.output.empty())
    std::fwrite(text.data(), 1, text.size(), stdout);
  else
    write_file(options.output, text);
  return 0;
}

void add_choice_of_notes(CLI::App& command, GenerateOptions& options) {
  CLI::Option* ids = command.add_option("--id", options.ids, "a note of the shards; several: a line each");
  CLI::Option* notes =
      command.add_option("--notes", options.notes, "the notes of this notes.jsonl, tokenised as the shards were");
  CLI::Option* texts = command.add_option("--text", options.texts, "the title of a new note; several: a line each");
  CLI::Option* contents = command.add_option("--content", options.contents,
                                             "its content; the first belongs to the first --text, and so on");
  ids->type_name("ID")->excludes(notes)->excludes(texts)->excludes(contents);
  notes->type_name("FILE")->excludes(texts)->excludes(contents);
  texts->type_name("TITLE");
  contents->type_name("TEXT");
}

void add_choice_of_tokens(CLI::App& command, GenerateOptions& options) {
  command.add_flag("--constrain", options.constrain, "only categories that notes of the shards have");
  command.add_option("--temperature", options.temperature, "0: the likeliest token; above: drawn, by logits / this")
      ->type_name("T")
      ->capture_default_str();
  command.add_option("--top-k", options.sampling.top_k, "draw among the k likeliest tokens; 0: all")
      ->type_name("K")
      ->capture_default_str();
  command.add_option("--top-p", options.sampling.top_p, "draw among the likeliest that together have this probability")
      ->type_name("P")
      ->capture_default_str();
  command.add_option("--seed", options.seed, "another seed draws other tokens")->type_name("N")->capture_default_str();
  command
      .add_option("--max-tokens", options.max_tokens,
                  fmt::format("most tokens of an output; default: {}", default_max_tokens))
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20).description(""));
}

}  // namespace

void add_generate(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("generate", "categories or hashtags of notes; alone or under mpirun");
  command->footer(R"(One JSON object a note, in the order asked for: id, title, category or hashtags, whether the output
ended by itself, with --vectors the note's vector. Without --id, --notes and --text: all notes of the
shards. parallel.tensor shares the model out over ranks; the other ranks take notes of their own.
Examples:
  notellm generate configs/demo.yaml --id 1017 --constrain
  notellm generate configs/demo.yaml --text "photo editor" --content "retouch photos" --task hashtags
  notellm generate configs/demo.yaml --notes new.jsonl --vectors --output answers.jsonl)");
  auto options = std::make_shared<GenerateOptions>();
  options->add_to(*command);
  command
      ->add_option("--checkpoint", options->checkpoint,
                   "folder of a checkpoint, or of a run; default: the newest of train.run")
      ->type_name("DIR");
  add_choice_of_notes(*command, *options);
  command->add_option("--task", options->task, "what to generate")
      ->capture_default_str()
      ->check(CLI::IsMember({"category", "hashtags"}));
  command->add_option("--topics", options->topics, "how many hashtags to ask for; default: data.prompt.max_hashtags")
      ->type_name("J")
      ->check(CLI::Range(1, 64).description(""));
  add_choice_of_tokens(*command, *options);
  command->add_flag("--vectors", options->vectors, "the note's vector too, from the same pass");
  command->add_option("--output", options->output, "write to this file; default: the standard output")
      ->type_name("FILE");
  command->callback(
      [options, &chosen] { chosen = [options](Communicator& ranks) { return generate(*options, ranks); }; });
}

}  // namespace notellm

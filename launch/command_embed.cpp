#include <cstdio>
#include <numeric>

#include "evaluation/embedder.h"
#include "launch/commands.h"
#include "launch/new_notes.h"
#include "launch/trained_model.h"
#include "launch/vector_file.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

struct EmbedOptions : ConfigOptions {
  std::string checkpoint, output, notes;
  bool pool = false;
};

// Rows of the table to embed: all, or those that users clicked.
std::vector<int32_t> rows_to_embed(const NoteTable& notes, bool pool) {
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < notes.size(); ++row)
    if (!pool || notes.in_pool[row]) rows.push_back(row);
  return rows;
}

int embed(const EmbedOptions& options, Communicator& ranks) {
  check_vector_file_name(options.output);
  if (ranks.rank() == 0) require_vectors_writable(options.output);  // before the work, not after it
  const RunConfig config = options.read_for_device(ranks);
  Mesh mesh = mesh_of(config, ranks);
  const TrainedModel model = TrainedModel::load(config, options.checkpoint, mesh);
  NoteTable fresh;
  if (!options.notes.empty()) fresh = tokenize_file(config.data.shards, model.shards.notes, options.notes);
  const NoteTable& notes = options.notes.empty() ? model.shards.notes : fresh;
  const std::vector<int32_t> rows = rows_to_embed(notes, options.pool);
  std::vector<std::string> ids;
  for (const int32_t row : rows) ids.push_back(notes.ids[row]);
  check_vector_ids(options.output, ids);

  const auto count = static_cast<int64_t>(rows.size());
  Buffer memory(count * model.config.model.note_dim * size_of(DType::f32));
  const Tensor vectors = memory.tensor(DType::f32, {count, model.config.model.note_dim});
  Stream stream(model.config.device);
  Embedder embedder(model.config.model, model.config.compute(), model.config.evaluate.batch_notes, model.config.device,
                    &mesh.tensor);
  embedder.embed(stream, mesh.data, model.weights, notes, rows, vectors, ranks.rank() == 0);
  if (ranks.rank() != 0) return 0;

  write_vectors(options.output, ids, vectors,
                {{"checkpoint", model.checkpoint.string()},
                 {"step", std::to_string(model.position.step)},
                 {"tokenizer", model.shards.notes.tokenizer_digest}});
  std::printf("%s: %s vectors of %lld dimensions, of the model after step %s\n", options.output.c_str(),
              format_count(count).c_str(), static_cast<long long>(vectors.cols()),
              format_count(model.position.step).c_str());
  return 0;
}

}  // namespace

void add_embed(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("embed", "vectors of notes, to a file; alone or under mpirun");
  command->footer(
      R"(Writes the normalised vectors (their scalar product is the cosine) of all notes of the shards, in the
order of notes.jsonl. FILE.h5 holds 'vectors' (f32 [notes, d]) and 'ids' (texts); FILE.npy holds the
vectors and FILE.ids.txt one id a line.
Example: notellm embed configs/demo.yaml --output vectors.npy)");
  auto options = std::make_shared<EmbedOptions>();
  options->add_to(*command);
  command
      ->add_option("--checkpoint", options->checkpoint,
                   "folder of a checkpoint, or of a run; default: the newest of train.run")
      ->type_name("DIR");
  command->add_option("--output", options->output, "the file to write: .h5 or .npy")->required()->type_name("FILE");
  CLI::Option* notes =
      command
          ->add_option("--notes", options->notes,
                       "embed the notes of this notes.jsonl, tokenised as the shards were, not those of the shards")
          ->type_name("FILE");
  command->add_flag("--pool", options->pool, "only the notes that users clicked: the pool that 'evaluate' ranks")
      ->excludes(notes);
  command->callback([options, &chosen] { chosen = [options](Communicator& ranks) { return embed(*options, ranks); }; });
}

}  // namespace notellm

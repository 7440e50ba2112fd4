#include <algorithm>
#include <cmath>
#include <cstdio>

#include "evaluation/embedder.h"
#include "launch/asked_notes.h"
#include "launch/commands.h"
#include "launch/nearest.h"
#include "launch/new_notes.h"
#include "launch/table.h"
#include "launch/trained_model.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

constexpr size_t title_width = 78;

struct NeighborsOptions : ConfigOptions {
  std::string checkpoint, pool = "all", index = "flat";
  std::vector<std::string> ids, texts, contents;
  int count = 10, examples = 5;
};

// What is asked for: notes of the table, or texts that are notes of a table of their own.
struct Queries {
  std::vector<int32_t> rows;  // of the note table
  NoteTable texts;
};

std::vector<int32_t> pool_rows(const NoteTable& notes, const std::string& pool) {
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < notes.size(); ++row)
    if (pool == "all" || notes.in_pool[row]) rows.push_back(row);
  return rows;
}

// Some notes from the most clicked one to the least, evenly spread.
std::vector<int32_t> examples(const NoteTable& notes, std::vector<int32_t> pool, int count) {
  std::stable_sort(pool.begin(), pool.end(), [&](int32_t a, int32_t b) { return notes.clicks[a] > notes.clicks[b]; });
  const auto most = std::min<int64_t>(count, pool.size());
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < most; ++i) rows.push_back(pool[i * (pool.size() - 1) / std::max<int64_t>(1, most - 1)]);
  return rows;
}

Queries read_queries(const NeighborsOptions& options, const std::string& shards, const NoteTable& notes,
                     const std::vector<int32_t>& pool) {
  Queries queries;
  queries.texts = tokenize_notes(shards, notes, notes_of_texts(options.texts, options.contents));
  queries.rows = options.ids.empty() && options.texts.empty() ? examples(notes, pool, options.examples)
                                                              : rows_of_ids(notes, options.ids);
  return queries;
}

struct Matrix {
  Buffer memory;
  Tensor values;
};

Matrix embed(Embedder& embedder, Mesh& mesh, const TrainedModel& model, const NoteTable& notes,
             const std::vector<int32_t>& rows) {
  const auto count = static_cast<int64_t>(rows.size());
  Matrix matrix{Buffer(std::max<int64_t>(1, count) * model.config.model.note_dim * size_of(DType::f32)), {}};
  matrix.values = matrix.memory.tensor(DType::f32, {count, model.config.model.note_dim});
  Stream stream(model.config.device);
  embedder.embed(stream, mesh.data, model.weights, notes, rows, matrix.values, mesh.world.rank() == 0);
  return matrix;
}

// One query and its neighbours; `self` (a row of the table, or -1) is left out of them.
void print_neighbors(const NoteTable& notes, const std::vector<int32_t>& pool, const std::string& heading, int32_t self,
                     int count, std::span<const Neighbor> found) {
  Table table("rrll");
  table.row({"", "cosine", "id", "title"});
  int shown = 0;
  for (const Neighbor& neighbor : found) {
    if (neighbor.row < 0 || pool[neighbor.row] == self || shown == count) continue;
    const int32_t row = pool[neighbor.row];
    table.row({std::to_string(++shown), fmt::format("{:.3f}", neighbor.cosine), notes.ids[row],
               one_line(notes.titles[row], title_width)});
  }
  std::printf("\n%s\n%s", heading.c_str(), table.text().c_str());
}

void print_index(const NearestIndex& index, Tensor pool) {
  const SearchQuality quality = index.compare_with_exact(pool);
  std::printf(
      "%s index: built in %s; %s searches in %.2f ms each, exact search %.2f ms; recall@10 against exact search %.1f "
      "%%\n",
      name_of(index.kind()), format_seconds(index.build_seconds()).c_str(), format_count(quality.queries).c_str(),
      1e3 * quality.seconds / quality.queries, 1e3 * quality.exact_seconds / quality.queries, 100 * quality.recall);
}

int neighbors(const NeighborsOptions& options, Communicator& ranks) {
  const RunConfig config = options.read_for_device(ranks);
  Mesh mesh = mesh_of(config, ranks);
  const TrainedModel model = TrainedModel::load(config, options.checkpoint, mesh);
  const NoteTable& notes = model.shards.notes;
  const std::vector<int32_t> pool = pool_rows(notes, options.pool);
  if (pool.empty())
    fail(ErrorKind::data, "{}: no note of these shards was clicked; --pool all searches all", config.data.shards);
  const Queries queries = read_queries(options, config.data.shards, notes, pool);

  Embedder embedder(model.config.model, model.config.compute(), model.config.evaluate.batch_notes, model.config.device,
                    &mesh.tensor);
  std::vector<int32_t> text_rows(queries.texts.size());
  for (size_t i = 0; i < text_rows.size(); ++i) text_rows[i] = static_cast<int32_t>(i);
  const Matrix of_ids = embed(embedder, mesh, model, notes, queries.rows);
  const Matrix of_texts = embed(embedder, mesh, model, queries.texts, text_rows);
  const Matrix of_pool = embed(embedder, mesh, model, notes, pool);
  if (ranks.rank() != 0) return 0;

  const NearestIndex index(index_kinds().at(options.index), of_pool.values);
  if (index.kind() != IndexKind::flat) print_index(index, of_pool.values);
  const int wanted = options.count + 1;  // the query itself may be among them
  const std::vector<Neighbor> near_ids = index.search(of_ids.values, wanted),
                              near_texts = index.search(of_texts.values, wanted);
  const auto block = [&](const std::vector<Neighbor>& all, size_t i) {
    return std::span(all).subspan(i * wanted, wanted);
  };
  for (size_t i = 0; i < queries.rows.size(); ++i) {
    const int32_t row = queries.rows[i];
    const std::string heading = fmt::format("{}  {}  ({} clicks)", notes.ids[row],
                                            one_line(notes.titles[row], title_width), format_count(notes.clicks[row]));
    print_neighbors(notes, pool, heading, row, options.count, block(near_ids, i));
  }
  for (size_t i = 0; i < text_rows.size(); ++i)
    print_neighbors(notes, pool, fmt::format("\"{}\"", one_line(queries.texts.titles[i], title_width)), -1,
                    options.count, block(near_texts, i));
  return 0;
}

}  // namespace

void add_neighbors(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("neighbors", "the notes nearest to notes or texts, by cosine");
  command->footer(R"(Without --id and --text, shows the neighbours of some notes, from the most clicked to the least.
Under mpirun the ranks share the computation of vectors; rank 0 searches.
Examples:
  notellm neighbors configs/demo.yaml --id 1017 --id 4711
  notellm neighbors configs/demo.yaml --text "photo editor" --content "retouch and organise photos")");
  auto options = std::make_shared<NeighborsOptions>();
  options->add_to(*command);
  command
      ->add_option("--checkpoint", options->checkpoint,
                   "folder of a checkpoint, or of a run; default: the newest of train.run")
      ->type_name("DIR");
  command->add_option("--id", options->ids, "a note of the shards; several: a block each")->type_name("ID");
  command->add_option("--text", options->texts, "the title of a new note; several: a block each")->type_name("TITLE");
  command->add_option("--content", options->contents, "its content; the first belongs to the first --text, and so on")
      ->type_name("TEXT");
  const auto positive = CLI::Range(1, 10000).description("");
  command->add_option("--count", options->count, "neighbours shown")
      ->type_name("N")
      ->capture_default_str()
      ->check(positive);
  command->add_option("--examples", options->examples, "notes shown where neither --id nor --text is given")
      ->type_name("N")
      ->capture_default_str()
      ->check(positive);
  command
      ->add_option("--index", options->index,
                   "flat: exact; hnsw, ivf: approximate, for large pools; their time is printed and how much they find")
      ->capture_default_str()
      ->check(CLI::IsMember({"flat", "hnsw", "ivf"}));
  command->add_option("--pool", options->pool, "where neighbours come from: all notes, or those that users clicked")
      ->capture_default_str()
      ->check(CLI::IsMember({"all", "clicked"}));
  command->callback(
      [options, &chosen] { chosen = [options](Communicator& ranks) { return neighbors(*options, ranks); }; });
}

}  // namespace notellm

#include <cmath>
#include <cstdio>

#include "data_pipeline/notes.h"
#include "evaluation/baselines.h"
#include "evaluation/recall.h"
#include "evaluation/report.h"
#include "launch/commands.h"
#include "launch/trained_model.h"
#include "runtime/files.h"
#include "runtime/log.h"

namespace notellm {
namespace {

struct EvaluateOptions : ConfigOptions {
  std::string checkpoint, json;
  std::vector<double> popularity_weights;
  bool baselines = true;
  int generation = 0;  // notes a task; 0: none
};

// A scratch folder that goes with the object.
class ScratchFolder {
 public:
  explicit ScratchFolder(std::filesystem::path path) : path_(std::move(path)) {
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The click log again: shards hold only the best pairs of each note.
ClickLists read_click_lists(const PrepareConfig& data, const std::filesystem::path& scratch) {
  NoteReader reader(data.notes, data.title);
  std::vector<Note> batch;
  while (reader.read(batch)) {
  }
  const NoteIndex index = reader.take_index();
  return read_clicks(data.clicks, index, scratch, int64_t{data.memory_mb} << 20);
}

std::vector<MethodRanks> baseline_ranks(const RunConfig& config, const NoteTable& notes, const Pool& pool,
                                        std::span<const Question> questions) {
  std::vector<MethodRanks> methods;
  methods.push_back({"popularity", popularity_ranks(notes, pool, questions)});
  methods.push_back({"popularity in the category", category_popularity_ranks(notes, pool, questions)});
  methods.push_back({"TF-IDF cosine", tfidf_ranks(config.data.notes, config.data.title, pool, questions)});
  const ScratchFolder scratch(std::filesystem::path(config.train.run) / "evaluate.scratch");
  const ClickLists lists = read_click_lists(config.data, scratch.path());
  const auto scores = training_scores(lists, pool, questions, int64_t{config.data.memory_mb} << 20);
  methods.push_back({"co-occurrence", cooccurrence_ranks(pool, questions, scores)});
  return methods;
}

// What is added to the cosine: weight · log(1 + training clicks) / e^tau. The loss compares e^tau · cosine, so that the
// weight is in its units: 1 would undo the correction for popular notes (loss.sampling_correction) entirely.
std::vector<float> popularity_prior(const NoteTable& notes, const Pool& pool, double weight, double tau) {
  std::vector<float> prior;
  for (int32_t note : pool.notes)
    prior.push_back(static_cast<float>(weight * std::log1p(notes.clicks[note]) / std::exp(tau)));
  return prior;
}

// Generated categories and hashtags of some notes beside the baselines'; on rank 0, the others' is of no use.
GenerationQuality evaluate_labels(const EvaluateOptions& options, Mesh& mesh, Stream& stream, const TrainedModel& model,
                                  const AskedLabels& asked) {
  const RunConfig& config = model.config;
  const NoteTable& notes = model.shards.notes;
  const OutputReader reader(config.data.shards, notes);
  std::vector<LabelMethod> methods;
  if (options.baselines && mesh.world.rank() == 0)
    methods = {majority_labels(notes, asked, reader),
               tfidf_labels(notes, asked, reader, config.data.notes, config.data.title)};
  const auto generate = [&](const TokenTrie* closed, int64_t most_tokens, const char* name) {
    NoteGenerator generator(config.model, config.compute(),
                            {.max_tokens = static_cast<int>(most_tokens), .sampling = {}}, config.evaluate.batch_notes,
                            config.device, &mesh.tensor);
    methods.push_back(generated_labels(stream, mesh, generator, model.weights, notes, asked, reader, closed, name));
  };
  // Labels of shards have at most max_output_tokens, hashtags are up to max_hashtags of them.
  const PromptConfig prompt = prepared_config(config.data.shards).prompt;
  generate(nullptr, int64_t{prompt.max_output_tokens} * std::max(1, prompt.max_hashtags), "notellm");
  if (!asked.category.empty()) {
    const TokenTrie closed = category_trie(notes);
    generate(&closed, closed.longest(), "notellm, constrained");
  }
  return score_labels(notes, asked, reader, methods);
}

std::vector<GenerationQuality> evaluate_generation(const EvaluateOptions& options, Mesh& mesh, Stream& stream,
                                                   const TrainedModel& model) {
  std::vector<GenerationQuality> slices;
  if (options.generation == 0) return slices;
  for (const AskedLabels& asked : ask_labels(model.shards.notes, model.shards.pairs.train, options.generation))
    slices.push_back(evaluate_labels(options, mesh, stream, model, asked));
  if (slices.empty())
    fail(ErrorKind::data,
         "--generation: all notes with a category or hashtags are in training pairs: none is held out");
  return slices;
}

int evaluate(const EvaluateOptions& options, Communicator& ranks) {
  if (!options.json.empty() && ranks.rank() == 0) require_writable(options.json);  // before the work, not after it
  const RunConfig config = options.read_for_device(ranks);
  Mesh mesh = mesh_of(config, ranks);
  const TrainedModel model = TrainedModel::load(config, options.checkpoint, mesh);
  const NoteTable& notes = model.shards.notes;
  const std::vector<Pair>& test = model.shards.pairs.test;
  if (test.empty())
    fail(ErrorKind::data, "{} has no test pairs: raise data.clicks.heldout_share and prepare again",
         model.config.data.shards);
  const Pool pool = make_pool(notes);
  const std::vector<Question> questions = make_questions(pool, test);
  const std::vector<Slice> slices =
      make_slices(notes, model.shards.pairs.train, test, model.config.evaluate.low_exposure_below);

  Stream stream(model.config.device);
  Embedder embedder(model.config.model, model.config.compute(), model.config.evaluate.batch_notes, model.config.device,
                    &mesh.tensor);
  std::vector<MethodRanks> methods;
  if (options.baselines && ranks.rank() == 0) methods = baseline_ranks(model.config, notes, pool, questions);
  const Buffer memory = embed_pool(stream, mesh.data, embedder, model.weights, notes, pool, ranks.rank() == 0);
  const Tensor vectors = pool_vectors(memory, model.weights, pool);
  methods.push_back({"notellm", rank_targets(stream, ranks, vectors, questions)});
  for (const double weight : options.popularity_weights) {
    const auto prior = popularity_prior(notes, pool, weight, model.tau);
    methods.push_back(
        {fmt::format("notellm + {} × popularity", weight), rank_targets(stream, ranks, vectors, questions, prior)});
  }
  const std::vector<GenerationQuality> generation = evaluate_generation(options, mesh, stream, model);
  if (ranks.rank() != 0) return 0;
  std::printf("%s", format_report(methods, slices, pool.size()).c_str());
  for (const GenerationQuality& quality : generation) std::printf("%s", format_quality(quality).c_str());
  if (!options.json.empty()) write_file(options.json, report_json(methods, slices, pool.size(), generation));
  return 0;
}

}  // namespace

void add_evaluate(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand(
      "evaluate", "Recall@k and MRR of the test pairs over the whole pool, categories and hashtags, beside baselines");
  auto options = std::make_shared<EvaluateOptions>();
  options->add_to(*command);
  command->add_option("--checkpoint", options->checkpoint,
                      "folder of a checkpoint or run; default: the newest of train.run");
  command->add_option("--json", options->json, "write the numbers to this file too");
  command->add_option(
      "--popularity-weight", options->popularity_weights,
      "rank also with this weight × log(1 + training clicks) added to e^tau × cosine; several: a line each");
  command
      ->add_option("--generation", options->generation,
                   "generate categories and hashtags of so many notes each that are in no training pair, clicked ones "
                   "and others, and score them; 0: leave it out")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_flag("!--no-baselines", options->baselines, "leave the baselines out");
  command->callback(
      [options, &chosen] { chosen = [options](Communicator& ranks) { return evaluate(*options, ranks); }; });
}

}  // namespace notellm

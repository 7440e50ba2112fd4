#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

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

// A scratch folder that goes with the object, and the folder around it where that was not there.
class ScratchFolder {
 public:
  ScratchFolder(const std::filesystem::path& parent, const char* name)
      : removed_(std::filesystem::exists(parent) ? parent / name : parent), path_(parent / name) {
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(removed_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path removed_, path_;
};

// What baselines read again, as it was when the shards were made: the texts, and the click log, of which shards hold
// only the best pairs of each note. The files may have moved since.
PrepareConfig prepared_data(const PrepareConfig& now) {
  const ShardSet set = read_shard_set(now.shards);
  PrepareConfig data = prepared_config(now.shards);
  const auto require_same = [&](const std::string& file, const std::string& before) {
    if (checksum_file(file) != set.inputs.at(before))
      fail(ErrorKind::data,
           "{} is not what {} was prepared from ({}), and the baselines read it again: prepare again, or leave them "
           "out with --no-baselines",
           file, now.shards, before);
  };
  if (now.clicks.files.size() != data.clicks.files.size())
    fail(ErrorKind::data,
         "data.clicks.files names {} files, {} was prepared from {}, and the baselines read them again: prepare again, "
         "or leave them out with --no-baselines",
         now.clicks.files.size(), now.shards, data.clicks.files.size());
  require_same(now.notes, data.notes);
  for (size_t i = 0; i < now.clicks.files.size(); ++i) require_same(now.clicks.files[i], data.clicks.files[i]);
  data.notes = now.notes;
  data.clicks.files = now.clicks.files;
  data.memory_mb = now.memory_mb;
  return data;
}

ClickLists read_click_lists(const PrepareConfig& data, const std::filesystem::path& scratch) {
  NoteReader reader(data.notes, data.title);
  std::vector<Note> batch;
  while (reader.read(batch)) {
  }
  const NoteIndex index = reader.take_index();
  return read_clicks(data.clicks, index, scratch, int64_t{data.memory_mb} << 20);
}

std::vector<MethodRanks> baseline_ranks(const PrepareConfig& data, const std::string& run, const NoteTable& notes,
                                        const Pool& pool, std::span<const Question> questions) {
  std::vector<MethodRanks> methods;
  methods.push_back({"popularity", popularity_ranks(notes, pool, questions)});
  methods.push_back({"popularity in the category", category_popularity_ranks(notes, pool, questions)});
  methods.push_back({"TF-IDF cosine", tfidf_ranks(data.notes, data.title, pool, questions)});
  const ScratchFolder scratch(run, "evaluate.scratch");
  const ClickLists lists = read_click_lists(data, scratch.path());
  const auto scores = training_scores(lists, pool, questions, int64_t{data.memory_mb} << 20);
  methods.push_back({"co-occurrence", cooccurrence_ranks(pool, questions, scores)});
  methods.push_back({"co-occurrence, popularity", cooccurrence_popularity_ranks(notes, pool, questions, scores)});
  return methods;
}

// What is added to the cosine: weight · log(1 + training clicks) / e^tau. The loss compares e^tau · cosine, so that the
// weight is in its units: 1 gives popular notes about what loss.sampling_correction took from them, by places in pairs.
std::vector<float> popularity_prior(const NoteTable& notes, const Pool& pool, double weight, double tau) {
  std::vector<float> prior;
  for (int32_t note : pool.notes)
    prior.push_back(static_cast<float>(weight * std::log1p(notes.clicks[note]) / std::exp(tau)));
  return prior;
}

// Generated categories and hashtags of some notes beside the baselines'; on rank 0, the others' is of no use.
GenerationQuality evaluate_labels(Mesh& mesh, Stream& stream, const TrainedModel& model, const AskedLabels& asked,
                                  const std::optional<PrepareConfig>& baselines) {
  const RunConfig& config = model.config;
  const NoteTable& notes = model.shards.notes;
  const OutputReader reader(config.data.shards, notes);
  std::vector<LabelMethod> methods;
  if (baselines)
    methods = {majority_labels(notes, asked, reader),
               tfidf_labels(notes, asked, reader, baselines->notes, baselines->title)};
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

// Notes whose categories and hashtags are asked for.
std::vector<AskedLabels> asked_labels(const EvaluateOptions& options, const Shards& shards) {
  if (options.generation == 0) return {};
  std::vector<AskedLabels> asked = ask_labels(shards.notes, shards.pairs.train, options.generation);
  if (asked.empty())
    fail(ErrorKind::data,
         "--generation: no note with a category or hashtags is in no training pair: none is held out to ask for");
  return asked;
}

// The questions of some users of a log are only held out from a model that was trained on the same split of it.
void warn_of_other_shards(const TrainedModel& model) {
  if (!model.trained_on.empty() && model.trained_on != model.shards.notes.shards)
    spdlog::warn(
        "{} was trained on other shards than {}: their test pairs may have been its training pairs, and 'seen', "
        "'unseen' and 'cold' may not be true of it",
        model.checkpoint.string(), model.config.data.shards);
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
  const std::vector<AskedLabels> asked = asked_labels(options, model.shards);
  std::optional<PrepareConfig> baselines;  // on the rank that makes them
  if (options.baselines && ranks.rank() == 0) baselines = prepared_data(model.config.data);
  if (ranks.rank() == 0) warn_of_other_shards(model);
  const Pool pool = make_pool(notes);
  const std::vector<Question> questions = make_questions(pool, test);
  const std::vector<Slice> slices =
      make_slices(notes, model.shards.pairs.train, test, model.config.evaluate.low_exposure_below);

  Stream stream(model.config.device);
  Embedder embedder(model.config.model, model.config.compute(), model.config.evaluate.batch_notes, model.config.device,
                    &mesh.tensor);
  std::vector<MethodRanks> methods;
  if (baselines) methods = baseline_ranks(*baselines, config.train.run, notes, pool, questions);
  const Buffer memory = embed_pool(stream, mesh.data, embedder, model.weights, notes, pool, ranks.rank() == 0);
  const Tensor vectors = pool_vectors(memory, model.weights, pool);
  methods.push_back({"notellm", rank_targets(stream, ranks, vectors, questions)});
  for (const double weight : options.popularity_weights) {
    const auto prior = popularity_prior(notes, pool, weight, model.tau);
    methods.push_back(
        {fmt::format("notellm + {} × popularity", weight), rank_targets(stream, ranks, vectors, questions, prior)});
  }
  if (ranks.rank() == 0) std::printf("%s", format_report(methods, slices, pool.size()).c_str());
  std::fflush(stdout);  // before the hours that generation may take
  std::vector<GenerationQuality> generation;
  for (const AskedLabels& some : asked) {
    generation.push_back(evaluate_labels(mesh, stream, model, some, baselines));
    if (ranks.rank() == 0) std::printf("%s", format_quality(generation.back()).c_str());
  }
  if (ranks.rank() != 0) return 0;
  if (!options.json.empty()) write_file(options.json, report_json(methods, slices, pool.size(), generation));
  return 0;
}

}  // namespace

void add_evaluate(CLI::App& app, Action& chosen) {
  const CLI::Validator finite(
      [](std::string& text) {
        double number = 0;
        const bool is_finite = CLI::detail::lexical_cast(text, number) && std::isfinite(number);
        return is_finite ? std::string() : text + " is not a finite number";
      },
      "NUMBER");
  CLI::App* command = app.add_subcommand(
      "evaluate", "Recall@k and MRR of the test pairs over the whole pool, categories and hashtags, beside baselines");
  auto options = std::make_shared<EvaluateOptions>();
  options->add_to(*command);
  command->add_option("--checkpoint", options->checkpoint,
                      "folder of a checkpoint or run; default: the newest of train.run");
  command->add_option("--json", options->json, "write the numbers to this file too");
  command
      ->add_option(
          "--popularity-weight", options->popularity_weights,
          "rank also with this weight × log(1 + training clicks) added to e^tau × cosine; several: a line each")
      ->check(finite);
  command
      ->add_option("--generation", options->generation,
                   "generate categories and hashtags of so many notes each that are in no training pair, clicked ones "
                   "and others, and score them; 0: leave it out")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(0, std::numeric_limits<int>::max()));
  command->add_flag("!--no-baselines", options->baselines, "leave the baselines out");
  command->callback(
      [options, &chosen] { chosen = [options](Communicator& ranks) { return evaluate(*options, ranks); }; });
}

}  // namespace notellm

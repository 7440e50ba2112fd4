#include "training/trainer.h"

#include <cmath>
#include <csignal>
#include <optional>
#include <utility>

#include "data_pipeline/shards.h"
#include "evaluation/recall.h"
#include "runtime/file_lock.h"
#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/progress.h"
#include "runtime/stopwatch.h"
#include "training/checkpoint.h"
#include "training/checkpoint_writer.h"
#include "training/metrics.h"
#include "training/state.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

volatile std::sig_atomic_t signal_received = 0;

// TERM and USR1 set a flag while a run lasts; the step loop looks at it.
class SignalGuard {
 public:
  SignalGuard() {
    signal_received = 0;
    old_term_ = std::signal(SIGTERM, [](int number) { signal_received = number; });
    old_user_ = std::signal(SIGUSR1, [](int number) { signal_received = number; });
  }
  ~SignalGuard() {
    std::signal(SIGTERM, old_term_);
    std::signal(SIGUSR1, old_user_);
  }

 private:
  void (*old_term_)(int);
  void (*old_user_)(int);
};

// "model.dim 192 → 256" of each key that differs between the checkpoint's configuration and this run's, where `counts`
// says so of the key.
template <class Counts>
std::string changed_keys(RunConfig before, RunConfig now, const Counts& counts) {
  Fields old_fields, new_fields;
  before.fields(old_fields);
  now.fields(new_fields);
  std::string text;
  for (size_t i = 0; i < new_fields.all().size(); ++i) {
    const std::string &key = new_fields.all()[i].path, was = old_fields.all()[i].print(),
                      is = new_fields.all()[i].print();
    if (was != is && counts(key)) text += fmt::format("{}{} {} → {}", text.empty() ? "" : ", ", key, was, is);
  }
  return text;
}

// Keys that decide the shapes of the weights.
bool is_shape(std::string_view key) {
  for (const char* name :
       {"dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "note_dim", "tied_head", "qkv_bias"})
    if (key == fmt::format("model.{}", name)) return true;
  return false;
}

// Keys that change what a resumed run computes: not those of how it runs and reports, nor initial values.
bool is_decisive(std::string_view key) {
  if (key == "train.steps" || key == "train.pairs_per_step") return true;
  return key != "threads" && key != "device" && !key.starts_with("train.") && !key.starts_with("evaluate.") &&
         !key.starts_with("parallel.") && !key.starts_with("model.init.") && key != "model.from" &&
         key != "model.export_type";
}

class Trainer {
 public:
  Trainer(const RunConfig& config, Mesh& mesh, const Shards& shards)
      : config_(config),
        mesh_(mesh),
        ranks_(mesh.world),
        shards_(shards),
        stream_(config.device),
        state_(config, shards.notes.prompt, mesh),
        step_(config, shards.notes, shards.pairs, mesh),
        writer_(config, shards.notes, state_) {}

  void start_anew() { state_.start_anew(config_, shards_.notes.prompt); }
  void begin_with(const fs::path& checkpoint);
  void resume_from(const fs::path& checkpoint);
  TrainingEnd run();

 private:
  StepMetrics do_step();
  void count_skipped(const StepMetrics& metrics);
  void save();
  void end(Metrics* metrics);
  bool end_step();
  void evaluate_sample(Metrics* metrics);
  void warn_of_hosts();

  const RunConfig& config_;
  Mesh& mesh_;
  Communicator& ranks_;
  const Shards& shards_;
  Stream stream_;
  TrainingState state_;
  TrainingStep step_;
  CheckpointWriter writer_;
  TrainingPosition position_;
  int skipped_in_a_row_ = 0;
  int64_t saved_step_ = -1;  // of the newest save that was begun
  std::optional<Embedder> embedder_;
};

// The weights of another run, or imported ones; all else begins anew.
void Trainer::begin_with(const fs::path& checkpoint) {
  const CheckpointInfo info = verify_checkpoint(checkpoint, ranks_);
  require_same_tokenizer(info, shards_.notes, config_.data.shards);
  load_master_weights(info, state_.layout, state_.shards, state_.optimizer);
  state_.weights.refresh();
  spdlog::info("begins with the weights of {}", checkpoint.string());
}

void Trainer::resume_from(const fs::path& checkpoint) {
  const CheckpointInfo info = verify_checkpoint(checkpoint, ranks_);
  require_same_tokenizer(info, shards_.notes, config_.data.shards);
  if (!has_moments(info.manifest))
    fail(ErrorKind::checkpoint,
         "{0} has weights alone, no optimizer state to go on with: begin a run with them, by model.from: {0}",
         checkpoint.string());
  if (const std::string shapes = changed_keys(info.config, config_, is_shape); !shapes.empty())
    fail(ErrorKind::checkpoint,
         "{} is of another model: {}; set the keys to the checkpoint's values, or start anew with --set train.run=…",
         checkpoint.string(), shapes);
  const std::string changes = changed_keys(info.config, config_, is_decisive);
  if (!changes.empty() && ranks_.rank() == 0)
    spdlog::warn("{} was trained with other settings, from here on: {}", checkpoint.string(), changes);
  if (ranks_.rank() == 0 && !info.manifest.trained_on.empty() && info.manifest.trained_on != shards_.notes.shards)
    spdlog::warn("{} was trained on other shards than {} has now: its training pairs may be among the test pairs",
                 checkpoint.string(), config_.data.shards);
  load_state(info, state_.layout, state_.shards, state_.optimizer);
  state_.weights.refresh();
  position_ = info.manifest.position;
  saved_step_ = position_.step;
  spdlog::info("resumed from {} after step {}", checkpoint.string(), position_.step);
}

StepMetrics Trainer::do_step() {
  const Stopwatch watch;
  StepMetrics m;
  const float tau = state_.tau(stream_);
  m.tau = tau;
  m.result = step_.run(stream_, position_.step, state_, tau);
  m.learning_rate = learning_rate(config_.optimizer, position_.step, config_.train.steps);
  m.gradient_norm = state_.update(stream_, m.learning_rate, position_.updates + 1);
  ++position_.step;
  m.step = position_.step;
  count_skipped(m);
  m.skipped = position_.skipped;
  m.seconds = watch.seconds();
  return m;
}

// A norm that is not finite changed nothing, on any rank: all ranks hold the same sums.
void Trainer::count_skipped(const StepMetrics& m) {
  if (std::isfinite(m.gradient_norm)) {
    ++position_.updates;
    skipped_in_a_row_ = 0;
    return;
  }
  ++position_.skipped;
  ++skipped_in_a_row_;
  if (ranks_.rank() == 0) spdlog::warn("step {}: the gradient has NaN or Inf; skipped by all ranks", m.step);
  if (skipped_in_a_row_ >= config_.train.most_skipped_steps) {
    writer_.finish();
    fail(ErrorKind::diverged,
         "{} steps in a row had NaN or Inf, the last one step {}: lower optimizer.learning_rate, or go on from an "
         "older checkpoint with --resume",
         skipped_in_a_row_, m.step);
  }
}

void Trainer::save() {
  if (saved_step_ == position_.step) return;
  writer_.begin(stream_, position_);
  saved_step_ = position_.step;
}

void Trainer::end(Metrics* metrics) {
  save();
  writer_.finish();
  if (metrics) metrics->finish();
  ranks_.barrier("end of training");  // a rank that ends with another code than 0 takes the others with it
}

// What all ranks tell each other at the end of a step: whether one got a signal, and how a save stands. Returns whether
// the run is to end.
bool Trainer::end_step() {
  constexpr int64_t signal = 1 << 8;
  bool ends = false;
  std::vector<CheckpointWriter::Standing> standings;
  for (const int64_t word : ranks_.all_gather(
           "signal", static_cast<int64_t>(writer_.standing()) | (signal_received != 0 ? signal : int64_t{0}))) {
    ends = ends || (word & signal) != 0;
    standings.push_back(static_cast<CheckpointWriter::Standing>(word & ~signal));
  }
  writer_.proceed(standings);
  return ends;
}

void Trainer::evaluate_sample(Metrics* metrics) {
  if (!embedder_)
    embedder_.emplace(config_.model, config_.compute(), config_.evaluate.batch_notes, config_.device, &mesh_.tensor);
  const Pool pool = make_pool(shards_.notes);
  const auto questions = make_questions(pool, sample_pairs(shards_.pairs.test, config_.train.evaluate_pairs));
  const PassHooks hooks{.begins = [&](int layer) { state_.weights.begins(stream_, layer); }, .done = {}};
  const Weights& weights = state_.weights.views();
  const Buffer vectors = embed_pool(stream_, mesh_.data, *embedder_, weights, shards_.notes, pool, false, hooks);
  const auto found = rank_targets(stream_, ranks_, pool_vectors(vectors, weights, pool), questions);
  if (metrics) metrics->evaluation(position_.step, named_values(summarize(found)));
}

// After one step: what it has sent is counted.
void Trainer::warn_of_hosts() {
  const int64_t here =
      bytes_to_other_hosts(mesh_.tensor.bytes_sent_in_group(), mesh_.tensor.size(), mesh_.tensor.local_size());
  const int64_t bytes = ranks_.max("hosts of tensor groups", here);
  if (bytes > 0 && ranks_.rank() == 0) spdlog::warn("{}", describe_hosts_cost(bytes, mesh_.tensor.size()));
}

TrainingEnd Trainer::run() {
  const SignalGuard guard;
  std::optional<Metrics> metrics;
  if (ranks_.rank() == 0)
    metrics.emplace(config_.train.run, position_.step, config_.train.steps, config_.train.log_every);
  bool first = true;
  while (position_.step < config_.train.steps) {
    set_watchdog_step(position_.step + 1);
    const StepMetrics m = do_step();
    if (metrics) metrics->step(m);
    if (std::exchange(first, false)) warn_of_hosts();
    const auto every = [&](int n) { return n > 0 && position_.step % n == 0; };
    if (end_step()) {
      end(metrics ? &*metrics : nullptr);
      if (ranks_.rank() == 0)
        spdlog::info("a signal asked for the end: saved after step {}; go on with --resume auto", position_.step);
      return TrainingEnd::preempted;
    }
    // Before the checkpoint: a run that ends in between does the evaluation again.
    if (every(config_.train.evaluate_every) && !shards_.pairs.test.empty())
      evaluate_sample(metrics ? &*metrics : nullptr);
    if (every(config_.train.checkpoint_every)) save();
  }
  end(metrics ? &*metrics : nullptr);
  return TrainingEnd::finished;
}

// For the lock of train.run, in seconds: the watchdog must not take the waiting for a rank that is gone.
double lock_patience(const TrainConfig& config) {
  constexpr double most = 60;
  return config.watchdog_seconds > 0 ? std::min(most, config.watchdog_seconds / 2.0) : most;
}

std::optional<fs::path> checkpoint_to_resume(const RunConfig& config, const std::string& resume) {
  if (resume == "auto") return latest_checkpoint(config.train.run);
  std::optional<fs::path> chosen;
  if (resume != "never") chosen = find_checkpoint(resume);
  // Those of another run are not written over.
  const std::vector<fs::path> own = checkpoints_of(checkpoint_path(config.train.run, 0).parent_path());
  if (!own.empty() && !(chosen && fs::equivalent(own.back().parent_path(), chosen->parent_path())))
    fail(ErrorKind::usage,
         "{} has checkpoints already ({}): go on with --resume auto, or choose another folder with --set train.run=…",
         config.train.run, own.back().string());
  return chosen;
}

}  // namespace

TrainingEnd train(const RunConfig& config, const std::string& resume, Communicator& ranks) {
  set_watchdog(config.train.watchdog_seconds);
  ranks.require_equal("configuration", "configuration", print_run_config(config) + resume);
  const Shards shards = read_shards(config.data.shards);
  ranks.require_equal("shards", "set of shards in " + config.data.shards, shards.notes.shards);
  std::optional<FileLock> lock;
  if (ranks.rank() == 0)
    lock.emplace(fs::path(config.train.run) / "lock", "another training writes to " + config.train.run, "train.run",
                 lock_patience(config.train));
  ranks.barrier("lock of the run's folder");
  const std::optional<fs::path> checkpoint = checkpoint_to_resume(config, resume);
  ranks.require_equal("checkpoint", "checkpoint to go on from", checkpoint ? checkpoint->string() : "none");
  Mesh mesh(ranks, config.parallel.tensor);
  Trainer trainer(config, mesh, shards);
  if (checkpoint)
    trainer.resume_from(*checkpoint);
  else if (!config.model.from.empty())
    trainer.begin_with(find_checkpoint(config.model.from));
  else
    trainer.start_anew();
  if (ranks.rank() == 0) {
    write_file(fs::path(config.train.run) / config_file_name, print_run_config(config));
    if (config.train.evaluate_every > 0 && shards.pairs.test.empty())
      spdlog::warn("there are no test pairs: train.evaluate_every does nothing; raise data.clicks.heldout_share");
    spdlog::info("{} notes, {} training pairs; {} ranks; metrics in {}/metrics.jsonl",
                 format_count(shards.notes.size()), format_count(static_cast<int64_t>(shards.pairs.train.size())),
                 ranks.size(), config.train.run);
  }
  return trainer.run();
}

}  // namespace notellm

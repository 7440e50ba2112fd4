#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "data_pipeline/shards.h"
#include "kernels/infonce.h"
#include "launch/bench.h"
#include "launch/flops.h"
#include "launch/measure.h"
#include "launch/table.h"
#include "losses/token_loss.h"
#include "model/note_head.h"
#include "model/tiles.h"
#include "runtime/progress.h"
#include "training/optimizer.h"
#include "training/step.h"

namespace notellm {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What a run of the benchmark trains: freshly initialised weights and their optimizer.
struct Training {
  Training(const RunConfig& config, const PromptTokens& prompt)
      : layout(config.model, padded_vocabulary(prompt.vocabulary)),
        optimizer(config.optimizer, layout, config.compute()),
        gradient_memory(layout.size() * size_of(DType::f32)),
        weights(layout, config.model, optimizer.compute_weights()),
        gradients(layout, config.model, gradient_memory.tensor(DType::f32, {layout.size()})) {
    initialize(layout, config.model, config.seed, prompt.vocabulary, prompt.emb, optimizer.weights());
    optimizer.refresh_compute_weights();
  }
  float tau() const { return *layout.at("note_head.tau").view(optimizer.weights()).as<float>(); }

  ParameterLayout layout;
  Optimizer optimizer;
  Buffer gradient_memory;
  Weights weights, gradients;
};

struct StepTimes {
  int64_t notes = 0, tokens = 0, unshared_tokens = 0, labels = 0;  // of all timed steps
  double seconds = 0, fastest = 1e30;
};

StepTimes time_steps(const RunConfig& config, const BenchStepOptions& options, const Shards& shards,
                     Communicator& ranks) {
  Training training(config, shards.notes.prompt);
  TrainingStep step(config, shards.notes, shards.pairs, ranks);
  Stream stream;
  StepTimes times;
  Progress progress("steps", options.warmup + options.steps, ranks.rank() == 0);
  for (int i = 0; i < options.warmup + options.steps; ++i) {
    ranks.barrier("begin of a step");
    const auto start = Clock::now();
    const StepResult result = step.run(stream, i, training.weights, training.tau(), training.gradients);
    training.optimizer.update(stream, training.gradients.flat, learning_rate(config.optimizer, i, config.train.steps),
                              i + 1);
    const double seconds = ranks.max("slowest rank", seconds_since(start));
    progress.advance();
    if (i < options.warmup) continue;
    times.notes += result.notes;
    times.tokens += result.tokens;
    times.unshared_tokens += result.unshared_tokens;
    times.labels += result.labels;
    times.seconds += seconds;
    times.fastest = std::min(times.fastest, seconds);
  }
  return times;
}

// A step by hand, one part after the other, as TrainingStep does it for its first micro-batch: for the times of the
// parts and the operations counted from the batches, which TrainingStep does not tell.
class Parts {
 public:
  Parts(const RunConfig& config, const Shards& shards, Communicator& ranks);
  // A step: adds its times to seconds().
  void run(int64_t step);
  // Floating-point operations of this rank in a step, all micro-batches.
  StepFlops count_flops(int64_t step);

  int micro_batches() const { return micro_batches_; }
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }
  void forget_times() { seconds_.clear(); }

 private:
  void plan(int64_t step);
  void pack_micro_batch(int micro_batch);
  template <class Work>
  void part(const char* name, const Work& work);

  const RunConfig& config_;
  const NoteTable& notes_;
  Communicator& ranks_;
  int micro_batches_;
  Training training_;
  Sampler sampler_;
  Transformer transformer_;
  Contrastive contrastive_;
  std::vector<Sampler::Slot> slots_;
  std::vector<std::vector<std::vector<int32_t>>> lists_;  // [rank][micro-batch] slots
  std::vector<int64_t> ids_, rows_of_;
  std::vector<NoteExample> examples_;
  PackedBatch batch_;
  ModelInput input_;
  Stream stream_;
  std::optional<Arena> arena_;  // kept from step to step, as TrainingStep's: fresh pages cost time
  std::vector<std::pair<std::string, double>> seconds_;
};

int micro_batch_count(const RunConfig& config, const Communicator& ranks) {
  const int64_t own = (config.train.pairs_per_step + ranks.size() - 1) / ranks.size();
  const int64_t most = config.train.micro_batch_pairs;
  return most == 0 ? 1 : static_cast<int>((own + most - 1) / most);
}

Parts::Parts(const RunConfig& config, const Shards& shards, Communicator& ranks)
    : config_(config),
      notes_(shards.notes),
      ranks_(ranks),
      micro_batches_(micro_batch_count(config, ranks)),
      training_(config, shards.notes.prompt),
      sampler_(shards.notes, shards.pairs, config.train.pairs_per_step,
               {static_cast<uint64_t>(config.seed), config.loss.hashtag_share, config.loss.random_topics}),
      transformer_(config.model, config.compute()),
      contrastive_(config.loss.mask_known, config.loss.gradient) {}

void Parts::plan(int64_t step) {
  slots_.clear();
  std::vector<int64_t> tokens;
  std::vector<int32_t> sequence;
  for (int64_t i = 0; i < config_.train.pairs_per_step; ++i) {
    slots_.push_back(sampler_.slot(step, i));
    tokens.push_back(0);
    for (const NoteExample* example : {&slots_.back().query, &slots_.back().target}) {
      int32_t first_label;
      compose(notes_, *example, sequence, &first_label);
      tokens.back() += std::ssize(sequence);
    }
  }
  lists_ = balance(tokens, ranks_.size(), micro_batches_);
  ids_.clear();
  rows_of_.assign(ranks_.size(), 0);
  for (int rank = 0; rank < ranks_.size(); ++rank)
    for (const auto& list : lists_[rank])
      for (const int32_t slot : list) {
        ids_.insert(ids_.end(), {slots_[slot].query.note, slots_[slot].target.note});
        rows_of_[rank] += 2;
      }
}

void Parts::pack_micro_batch(int micro_batch) {
  examples_.clear();
  for (const int32_t slot : lists_[ranks_.rank()][micro_batch]) {
    examples_.push_back(slots_[slot].query);
    examples_.push_back(slots_[slot].target);
  }
  pack(notes_, examples_, config_.train.share_prefix, batch_);
}

template <class Work>
void Parts::part(const char* name, const Work& work) {
  ranks_.barrier("part of a step");
  const auto start = Clock::now();
  work();
  const double seconds = ranks_.max("slowest rank", seconds_since(start));
  const auto found = std::find_if(seconds_.begin(), seconds_.end(), [&](const auto& one) { return one.first == name; });
  if (found == seconds_.end())
    seconds_.emplace_back(name, seconds);
  else
    found->second += seconds;
}

void Parts::run(int64_t step) {
  part("plan and pack", [&] {
    plan(step);
    pack_micro_batch(0);
    input_.set(batch_, true);
  });
  const int64_t own = rows_of_[ranks_.rank()], rows = std::ssize(examples_), all = std::ssize(ids_),
                d = config_.model.note_dim;
  const int64_t tokens = input_.tokens(), vocabulary = training_.layout.vocabulary();
  // Address space; what is not touched costs nothing.
  const int64_t bytes = transformer_arena_bytes(config_.model, config_.compute(), tokens, tokens) +
                        tokens * config_.model.kv_dim() * 4 + (4 * own + 4 * all) * d * 4 +
                        infonce_workspace(own, all) * 4 + tile_rows * (vocabulary + 3 * config_.model.dim) * 8 +
                        (int64_t{256} << 20);
  if (!arena_ || arena_->capacity_bytes() < bytes) arena_.emplace(bytes + bytes / 4);
  Arena& arena = *arena_;
  arena.rewind(0);
  const Tensor z = arena.allocate(DType::f32, {own, d}), norm = arena.allocate(DType::f32, {own}),
               dz = arena.allocate(DType::f32, {own, d});
  const Tensor projection = training_.weights.note_projection;
  Tensor hidden;
  part("forward", [&] { hidden = transformer_.forward(stream_, training_.weights, input_, arena, true); });
  part("note vectors, InfoNCE", [&] {
    note_vectors(stream_, hidden, input_.note_places(), projection, z.slice(0, rows), norm.slice(0, rows), arena);
    // The rows of other micro-batches: any vectors take the same time.
    for (int64_t row = rows; row < own; ++row)
      std::memcpy(z.slice(row, row + 1).data, z.slice(row % rows, row % rows + 1).data, d * 4);
    double dtau = 0;
    contrastive_.run(stream_, ranks_, {ids_, {}, rows_of_}, z, training_.tau(), 1.0 / static_cast<double>(all), dz,
                     &dtau, arena);
  });
  std::memset(training_.gradients.flat.data, 0, training_.gradients.flat.bytes());
  const Tensor d_hidden = arena.allocate(hidden.dtype, {hidden.rows(), hidden.cols()});
  std::memset(d_hidden.data, 0, d_hidden.bytes());
  part("LM head and token loss", [&] {
    token_loss(stream_, hidden, input_.label_places(), Tensor::of(batch_.labels.data(), {std::ssize(batch_.labels)}),
               training_.weights.head, notes_.prompt.vocabulary, 1e-4, d_hidden, training_.gradients.head, arena);
  });
  part("backward", [&] {
    note_vectors_backward(stream_, dz.slice(0, rows), hidden, input_.note_places(), projection, z.slice(0, rows),
                          norm.slice(0, rows), d_hidden, training_.gradients.note_projection, arena);
    transformer_.backward(stream_, training_.weights, input_, d_hidden, training_.gradients, arena);
  });
  part("all-reduce of gradients", [&] { ranks_.all_reduce_sum("gradients", training_.gradients.flat); });
  part("optimizer", [&] {
    training_.optimizer.update(stream_, training_.gradients.flat,
                               learning_rate(config_.optimizer, step, config_.train.steps), step + 1);
  });
}

StepFlops Parts::count_flops(int64_t step) {
  plan(step);
  StepFlops flops = infonce_flops(rows_of_[ranks_.rank()], std::ssize(ids_), config_.model.note_dim);
  for (int i = 0; i < micro_batches_; ++i) {
    pack_micro_batch(i);
    flops += batch_flops(config_.model, batch_, training_.layout.vocabulary(), micro_batches_ > 1);
  }
  return flops;
}

// Everything that is printed; sums over ranks.
struct Report {
  StepTimes times;
  int steps = 0, micro_batches = 1, ranks = 1;
  StepFlops flops;  // of one step, mean
  double peak_gflops = 0;
  std::vector<std::pair<std::string, double>> parts;  // seconds a step

  double step_seconds() const { return times.seconds / steps; }
  double gflops() const { return flops.total() / step_seconds() / 1e9; }
};

double sum_over(Communicator& ranks, double value) {
  ranks.all_reduce_sum("sum over ranks", Tensor::of(&value, {1}));
  return value;
}

Report measure(const RunConfig& config, const BenchStepOptions& options, const Shards& shards, Communicator& ranks) {
  Report report;
  report.ranks = ranks.size();
  report.steps = options.steps;
  report.peak_gflops = sum_over(ranks, measure_gemm_gflops(ranks, config.compute()));
  report.times = time_steps(config, options, shards, ranks);
  Parts parts(config, shards, ranks);
  report.micro_batches = parts.micro_batches();
  for (int i = 0; i < options.steps; ++i) report.flops += parts.count_flops(options.warmup + i);
  for (double* part : {&report.flops.layers, &report.flops.attention, &report.flops.heads, &report.flops.infonce})
    *part = sum_over(ranks, *part) / options.steps;
  const int repeats = std::min(options.steps, 3);
  parts.run(0);
  parts.forget_times();
  for (int i = 0; i < repeats; ++i) parts.run(options.warmup + i);
  report.parts = parts.seconds();
  for (auto& [name, seconds] : report.parts) seconds /= repeats;
  return report;
}

void print_table(const Report& r, const RunConfig& config, const std::string& source) {
  const auto per_step = [&](int64_t n) { return format_count(n / r.steps); };
  Table table("ll");
  table.row({"notes", source});
  table.row({"precision", config.precision == Precision::bf16 ? "bf16" : "fp32"});
  table.row({"ranks", std::to_string(r.ranks)});
  table.row(
      {"a step", fmt::format("{} notes, {} tokens ({} without shared prefixes), {} labels", per_step(r.times.notes),
                             per_step(r.times.tokens), per_step(r.times.unshared_tokens), per_step(r.times.labels))});
  table.row({"time", fmt::format("{:.3f} s a step (mean of {}; fastest {:.3f} s)", r.step_seconds(), r.steps,
                                 r.times.fastest)});
  table.row({"rate", fmt::format("{} notes/s, {} tokens/s", format_count(std::llround(r.times.notes / r.times.seconds)),
                                 format_count(std::llround(r.times.tokens / r.times.seconds)))});
  table.row(
      {"products", fmt::format("{:.1f} GFLOP a step (layers {:.1f}, attention {:.1f}, heads {:.1f}, InfoNCE {:.1f})",
                               r.flops.total() / 1e9, r.flops.layers / 1e9, r.flops.attention / 1e9,
                               r.flops.heads / 1e9, r.flops.infonce / 1e9)});
  table.row({"", fmt::format("{:.0f} GFLOP/s = {:.0f} % of the {:.0f} GFLOP/s of a 1024³ product here", r.gflops(),
                             100 * r.gflops() / r.peak_gflops, r.peak_gflops)});
  std::printf("%s\n", table.text().c_str());

  double sum = 0;
  for (const auto& [name, seconds] : r.parts) sum += seconds;
  std::printf("parts of a step, run one by one%s:\n",
              r.micro_batches == 1 ? "" : fmt::format(" (micro-batch 1 of {})", r.micro_batches).c_str());
  Table parts("lrr");
  for (const auto& [name, seconds] : r.parts)
    parts.row({name, fmt::format("{:.1f} ms", 1e3 * seconds), fmt::format("{:.1f} %", 100 * seconds / sum)});
  parts.row({"sum", fmt::format("{:.1f} ms", 1e3 * sum), ""});
  std::printf("%s", parts.text(2).c_str());
}

void print_json(const Report& r, const RunConfig& config, const std::string& source) {
  nlohmann::ordered_json json = {{"notes_from", source},
                                 {"precision", config.precision == Precision::bf16 ? "bf16" : "fp32"},
                                 {"ranks", r.ranks},
                                 {"steps", r.steps},
                                 {"micro_batches", r.micro_batches},
                                 {"notes_per_step", r.times.notes / r.steps},
                                 {"tokens_per_step", r.times.tokens / r.steps},
                                 {"unshared_tokens_per_step", r.times.unshared_tokens / r.steps},
                                 {"labels_per_step", r.times.labels / r.steps},
                                 {"seconds_per_step", r.step_seconds()},
                                 {"fastest_step_seconds", r.times.fastest},
                                 {"notes_per_second", r.times.notes / r.times.seconds},
                                 {"tokens_per_second", r.times.tokens / r.times.seconds},
                                 {"flops_per_step", r.flops.total()},
                                 {"gflops", r.gflops()},
                                 {"gemm_peak_gflops", r.peak_gflops}};
  for (const auto& [name, seconds] : r.parts) json["part_seconds"][name] = seconds;
  std::printf("%s\n", json.dump(2).c_str());
}

}  // namespace

void bench_step(const RunConfig& config, const BenchStepOptions& options, Communicator& ranks) {
  const Shards shards = options.synthetic ? synthetic_shards(config) : read_shards(config.data.shards);
  const Report report = measure(config, options, shards, ranks);
  if (ranks.rank() != 0) return;
  (options.json ? print_json : print_table)(report, config, options.synthetic ? "random tokens" : config.data.shards);
}

}  // namespace notellm

#include "training/step.h"

#include <algorithm>
#include <numeric>

#include "kernels/infonce.h"
#include "losses/token_loss.h"
#include "model/note_head.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t pairs_per_rank(const RunConfig& config, const Communicator& ranks) {
  if (config.train.pairs_per_step < ranks.size())
    fail(ErrorKind::usage, "train.pairs_per_step {} is fewer than the {} ranks: every rank needs a pair",
         config.train.pairs_per_step, ranks.size());
  return ceil_div(config.train.pairs_per_step, ranks.size());
}

SamplerConfig sampler_config(const RunConfig& config) {
  return {static_cast<uint64_t>(config.seed), config.loss.hashtag_share, config.loss.random_topics};
}

}  // namespace

StepParts& StepParts::operator+=(const StepParts& other) {
  packing += other.packing;
  forward += other.forward;
  contrastive += other.contrastive;
  token += other.token;
  backward += other.backward;
  reduce += other.reduce;
  return *this;
}

TrainingStep::TrainingStep(const RunConfig& config, const NoteTable& notes, const PairTable& pairs, Communicator& ranks)
    : config_(config),
      notes_(notes),
      ranks_(ranks),
      sampler_(notes, pairs, config.train.pairs_per_step, sampler_config(config)),
      transformer_(config.model, config.compute(), config.device, config.attention == AttentionKernels::cudnn),
      contrastive_(config.loss.mask_known, config.loss.gradient, config.device),
      gradient_sum_(ranks, config.device),
      losses_(config.device),
      micro_batches_(config.train.micro_batch_pairs == 0
                         ? 1
                         : static_cast<int>(ceil_div(pairs_per_rank(config, ranks), config.train.micro_batch_pairs))),
      batches_{MicroBatch(config), MicroBatch(config)},
      arena_(arena_bytes(), memory_of(config.device)) {}

TrainingStep::MicroBatch::MicroBatch(const RunConfig& config)
    : input(config.device,
            config.attention == AttentionKernels::cudnn
                ? std::optional(CudnnHeads{config.model.heads, config.model.kv_heads, config.model.head_dim})
                : std::nullopt) {}

TrainingStep::Longest TrainingStep::longest_sequence() const {
  Longest longest;
  std::vector<int32_t> sequence, topics;
  for (int32_t note = 0; note < notes_.size(); ++note) {
    topics.clear();
    for (int64_t t = 0; t < std::min(notes_.hashtags(note), notes_.prompt.hashtag_guidance.size()); ++t)
      topics.push_back(t);
    for (Task task : {Task::category, Task::hashtags}) {
      if (task == Task::hashtags ? topics.empty() : notes_.category[note].empty()) continue;
      int32_t first_label;
      compose(notes_, {note, task, task == Task::hashtags ? topics : std::vector<int32_t>()}, sequence, &first_label);
      const auto length = static_cast<int64_t>(sequence.size());
      if (length > config_.model.context)
        fail(ErrorKind::data,
             "note '{}' makes a sequence of {} tokens, more than model.context {}: raise model.context or lower "
             "data.prompt.max_note_tokens",
             notes_.ids[note], length, config_.model.context);
      longest.tokens = std::max(longest.tokens, length);
      longest.labels = std::max(longest.labels, length - first_label);
    }
  }
  return longest;
}

// Enough for a micro-batch of the longest notes. On the CPU that is address space: pages that are never touched cost
// nothing. On CUDA it is memory, taken at the start, so that a run does not find in the middle that it lacks some.
int64_t TrainingStep::arena_bytes() {
  const ModelConfig& m = config_.model;
  const DType compute = config_.compute();
  const int64_t size = size_of(compute), floats = 4, doubles = 8;
  const int64_t notes = 2 * ceil_div(pairs_per_rank(config_, ranks_), micro_batches_), own = notes * micro_batches_;
  const int64_t all = 2 * config_.train.pairs_per_step;
  const Longest longest = longest_sequence();
  const int64_t tokens = notes * longest.tokens, hidden = std::min(tokens, notes * (longest.labels + 1));
  const int64_t results = own * (2 * m.note_dim + 1 + longest.labels) * floats;
  const int64_t contrastive = (2 * all + own) * m.note_dim * floats + own * (doubles + 2 * floats) +
                              infonce_workspace(config_.device, own, all, m.note_dim) * floats;
  const int64_t token =
      token_loss_arena_bytes(config_.device, compute, m.dim, padded_vocabulary(notes_.prompt.vocabulary));
  const int64_t note_head = notes * (2 * m.dim + m.note_dim) * size;
  const int64_t attention =  // its workspace
      std::max(tokens * m.kv_dim(), transformer_.cudnn_workspace(notes, longest.tokens)) * floats;
  const int64_t small = 1 << 20;  // tensors of a few elements, alignment
  return transformer_arena_bytes(m, compute, config_.device, tokens, hidden, true) + hidden * m.dim * size + results +
         contrastive + token + note_head + attention + small;
}

void TrainingStep::make_plan(int64_t step, Plan& p) const {
  const int64_t slots = config_.train.pairs_per_step;
  p.step = step;
  p.slots.clear();
  std::vector<int64_t> tokens(slots), labels(slots);
  std::vector<int32_t> sequence;
  for (int64_t i = 0; i < slots; ++i) {
    p.slots.push_back(sampler_.slot(step, i));
    for (const NoteExample* example : {&p.slots.back().query, &p.slots.back().target}) {
      int32_t first_label = 0;
      compose(notes_, *example, sequence, &first_label);
      const auto length = static_cast<int64_t>(sequence.size());
      tokens[i] += length;
      labels[i] += example->task == Task::embed ? 0 : length - first_label;
    }
  }
  p.labels = std::accumulate(labels.begin(), labels.end(), int64_t{0});
  p.lists = balance(tokens, ranks_.size(), micro_batches_);
  p.ids.clear();
  p.log_q.clear();
  p.rows_of.assign(ranks_.size(), 0);
  p.labels_of.assign(ranks_.size(), 0);
  for (int rank = 0; rank < ranks_.size(); ++rank)
    for (const auto& list : p.lists[rank])
      for (int32_t slot : list) {
        for (const NoteExample* example : {&p.slots[slot].query, &p.slots[slot].target}) {
          p.ids.push_back(example->note);
          if (config_.loss.sampling_correction == SamplingCorrection::logq)
            p.log_q.push_back(sampler_.log_sampling_probability(example->note));
          ++p.rows_of[rank];
        }
        p.labels_of[rank] += labels[slot];
      }
}

void TrainingStep::take_plan(int64_t step) {
  if (next_plan_.step == step) std::swap(plan_, next_plan_);
  if (plan_.step != step) make_plan(step, plan_);
}

void TrainingStep::prepare(const Plan& plan, int pass, MicroBatch& b) const {
  b.step = plan.step;
  b.pass = pass;
  b.examples.clear();
  for (int32_t slot : plan.lists[ranks_.rank()][pass % micro_batches_]) {
    b.examples.push_back(plan.slots[slot].query);
    b.examples.push_back(plan.slots[slot].target);
  }
  pack(notes_, b.examples, config_.train.share_prefix, b.batch);
  b.input.set(b.batch, micro_batches_ == 1 || pass >= micro_batches_);
}

// The micro-batch of a pass of this step, prepared before or now.
TrainingStep::MicroBatch& TrainingStep::take(int pass) {
  turn_ ^= 1;
  MicroBatch& b = batches_[turn_];
  if (b.step != plan_.step || b.pass != pass) prepare(plan_, pass, b);
  return b;
}

// After a pass has been enqueued on a GPU, the host has time for the one after it, which may be the next step's first.
void TrainingStep::prepare_next(int pass) {
  if (config_.device == Device::cpu) return;
  if (pass + 1 < passes()) return prepare(plan_, pass + 1, batches_[turn_ ^ 1]);
  make_plan(plan_.step + 1, next_plan_);
  prepare(next_plan_, 0, batches_[turn_ ^ 1]);
}

// Sums over ranks, and means of what is a mean.
void TrainingStep::add_up(const ContrastiveSums& sums, double token_sum, StepResult& result) {
  StepFlops& f = result.flops;
  double totals[] = {sums.loss,
                     token_sum,
                     sums.positive_similarity,
                     sums.negative_similarity,
                     double(result.tokens),
                     double(result.unshared_tokens),
                     f.layers,
                     f.attention,
                     f.heads,
                     f.infonce,
                     f.repeated};
  ranks_.all_reduce_sum("loss", Tensor::of(totals, {std::ssize(totals)}));
  const double alpha = config_.loss.alpha;
  result.notes = std::ssize(plan_.ids);
  result.labels = plan_.labels;
  result.contrastive = totals[0] / result.notes;
  result.token = plan_.labels == 0 ? 0 : totals[1] / plan_.labels;
  result.loss = (result.contrastive + alpha * result.token) / (1 + alpha);
  result.positive_similarity = totals[2] / result.notes;
  result.negative_similarity = totals[3] / result.notes;
  result.tokens = static_cast<int64_t>(totals[4]);
  result.unshared_tokens = static_cast<int64_t>(totals[5]);
  f = {totals[6], totals[7], totals[8], totals[9], totals[10]};
}

struct TrainingStep::Pass {
  Stream& stream;
  const Weights &weights, &gradients;
  Tensor z, norm, dz;  // [own notes, note_dim], [own notes], as z
  Tensor losses;       // [own labels]
  double token_scale;
  StepResult& result;
  Stopwatch& watch;
  int64_t note = 0, label = 0;  // where the next micro-batch's begin
};

// Forward to the note vectors, which stay in p.z.
Tensor TrainingStep::embed(Pass& p, MicroBatch& b, bool keep) {
  p.result.seconds.packing += p.watch.lap();
  b.input.wait(p.stream);
  const Tensor hidden = transformer_.forward(p.stream, p.weights, b.input, arena_, keep);
  const auto rows = static_cast<int64_t>(b.examples.size());
  const auto part = [&](const Tensor& t) { return t.slice(p.note, p.note + rows); };
  note_vectors(p.stream, hidden, b.input.note_places(), p.weights.note_projection, part(p.z), part(p.norm), arena_);
  p.result.seconds.forward += p.watch.lap();
  return hidden;
}

// From the gradient of the note vectors and the token loss to that of the parameters.
void TrainingStep::backward(Pass& p, MicroBatch& b, Tensor hidden, bool last) {
  const auto notes = static_cast<int64_t>(b.examples.size()), labels = b.input.labels().rows();
  const auto part = [&](const Tensor& t) { return t.slice(p.note, p.note + notes); };
  const Tensor d_hidden = arena_.allocate(hidden.dtype, {hidden.rows(), hidden.cols()});
  set_zero(p.stream, d_hidden);
  token_loss(p.stream, hidden, b.input.label_places(), b.input.labels(), p.weights.head, notes_.prompt.vocabulary,
             p.token_scale, d_hidden, p.gradients.head, p.losses.slice(p.label, p.label + labels), arena_);
  p.result.seconds.token += p.watch.lap();
  note_vectors_backward(p.stream, part(p.dz), hidden, b.input.note_places(), p.weights.note_projection, part(p.z),
                        part(p.norm), d_hidden, p.gradients.note_projection, arena_);
  Transformer::LayerDone layer_done;
  if (last) layer_done = [&](int layer) { gradient_sum_.layer_done(p.stream, p.gradients, layer); };
  transformer_.backward(p.stream, p.weights, b.input, d_hidden, p.gradients, arena_, layer_done);
  b.input.done(p.stream);
  p.result.seconds.backward += p.watch.lap();
  p.note += notes;
  p.label += labels;
}

StepResult TrainingStep::run(Stream& stream, int64_t step, const Weights& weights, float tau,
                             const Weights& gradients) {
  StepResult result;
  Stopwatch watch;
  take_plan(step);
  arena_.rewind(0);
  set_zero(stream, gradients.flat);
  const int64_t own = plan_.rows_of[ranks_.rank()], all = std::ssize(plan_.ids), note_dim = config_.model.note_dim;
  const auto f32 = [&](std::initializer_list<int64_t> sizes) { return arena_.allocate(DType::f32, sizes); };
  const double alpha = config_.loss.alpha, contrastive_scale = 1 / (1 + alpha) / static_cast<double>(all);
  const double token_scale = plan_.labels == 0 ? 0 : alpha / (1 + alpha) / static_cast<double>(plan_.labels);
  Pass p{stream,
         weights,
         gradients,
         f32({own, note_dim}),
         f32({own}),
         f32({own, note_dim}),
         f32({plan_.labels_of[ranks_.rank()]}),
         token_scale,
         result,
         watch};
  const bool one_pass = micro_batches_ == 1;
  const int64_t mark = arena_.mark();

  Tensor hidden;
  for (int i = 0; i < micro_batches_; ++i) {
    MicroBatch& b = take(i);
    hidden = embed(p, b, one_pass);
    result.tokens += std::ssize(b.batch.tokens);
    result.unshared_tokens += b.batch.unshared_tokens;
    result.flops += batch_flops(config_.model, b.batch, weights.head.rows(), !one_pass);
    if (one_pass) break;
    b.input.done(stream);
    p.note += std::ssize(b.examples);
    arena_.rewind(mark);
    prepare_next(i);
  }
  contrastive_.run(stream, ranks_, {plan_.ids, plan_.log_q, plan_.rows_of}, p.z, tau, contrastive_scale, p.dz, arena_);
  result.flops += infonce_flops(own, all, note_dim);
  result.seconds.contrastive = watch.lap();

  p.note = 0;
  for (int i = passes() - micro_batches_; i < passes(); ++i) {
    MicroBatch& b = one_pass ? batches_[turn_] : take(i);
    if (!one_pass) hidden = embed(p, b, true);
    backward(p, b, hidden, i + 1 == passes());
    if (!one_pass) arena_.rewind(mark);
    if (i + 1 < passes()) prepare_next(i);
  }
  const ContrastiveSums sums = contrastive_.sums();
  const auto dtau = static_cast<float>(sums.dtau);
  copy(stream, Tensor::of(&dtau, {1}), gradients.tau);
  gradient_sum_.finish(stream, gradients);
  const Tensor losses = losses_.fetch(stream, {p.losses})[0];
  prepare_next(passes() - 1);
  losses_.wait();
  result.seconds.reduce = watch.lap();
  const auto of_rows = losses.span<float>();
  add_up(sums, std::accumulate(of_rows.begin(), of_rows.end(), 0.0), result);
  return result;
}

}  // namespace notellm

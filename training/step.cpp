#include "training/step.h"

#include <algorithm>
#include <numeric>

#include "losses/token_loss.h"
#include "model/note_head.h"
#include "runtime/stopwatch.h"

namespace notellm {

StepParts& StepParts::operator+=(const StepParts& other) {
  packing += other.packing;
  forward += other.forward;
  contrastive += other.contrastive;
  token += other.token;
  backward += other.backward;
  reduce += other.reduce;
  return *this;
}

TrainingStep::TrainingStep(const RunConfig& config, const NoteTable& notes, const PairTable& pairs, Mesh& mesh)
    : config_(config),
      notes_(notes),
      mesh_(mesh),
      sampler_(notes, pairs, config.train.pairs_per_step, sampler_config(config)),
      transformer_(config.model, config.compute(), config.device,
                   {.cudnn = config.attention == AttentionKernels::cudnn,
                    .recompute = config.parallel.recompute == Recompute::layer},
                   &mesh.tensor),
      contrastive_(config.loss.mask_known, config.loss.gradient, mesh.data.size(), config.device),
      losses_(config.device),
      micro_batches_(notellm::micro_batches(config, pairs_per_group(config, mesh.data.size(), mesh.tensor.size()))),
      batches_{MicroBatch(config, transformer_), MicroBatch(config, transformer_)},
      arena_(arena_bytes(), memory_of(config.device)) {}

TrainingStep::MicroBatch::MicroBatch(const RunConfig& config, const Transformer& transformer)
    : input(config.device,
            config.attention == AttentionKernels::cudnn
                ? std::optional(CudnnHeads{transformer.config().heads, transformer.config().kv_heads,
                                           transformer.config().head_dim})
                : std::nullopt,
            transformer.part()) {}

// Enough for a micro-batch of the longest notes. On the CPU that is address space: pages that are never touched cost
// nothing. On CUDA it is memory, taken at the start, so that a run does not find in the middle that it lacks some.
int64_t TrainingStep::arena_bytes() {
  const Longest longest = longest_sequence(config_, notes_);
  ArenaSizes sizes = largest_sizes(config_, longest, mesh_.data.size(), mesh_.tensor.size());
  sizes.attention_floats = std::max(sizes.attention_floats, transformer_.cudnn_workspace(sizes.notes, longest.tokens));
  return step_memory(config_, padded_vocabulary(notes_.prompt.vocabulary), mesh_.tensor.size(), sizes).arena();
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
      labels[i] += length - first_label;
    }
  }
  p.labels = std::accumulate(labels.begin(), labels.end(), int64_t{0});
  p.lists = balance(tokens, mesh_.data.size(), micro_batches_);
  p.ids.clear();
  p.log_q.clear();
  p.rows_of.clear();
  p.own_labels = 0;
  for (const auto& list : p.lists[mesh_.data.rank()])
    for (int32_t slot : list) p.own_labels += labels[slot];
  for (int group = 0; group < mesh_.data.size(); ++group)
    for (int part = 0; part < mesh_.tensor.size(); ++part) add_rank(p, group, {part, mesh_.tensor.size()});
}

// The notes of a rank, in the gathered order: of each micro-batch of its group its share.
void TrainingStep::add_rank(Plan& p, int group, TensorPart part) const {
  const int64_t before = std::ssize(p.ids);
  for (const auto& list : p.lists[group]) {
    const FlatRange own = notes_of_part(2 * std::ssize(list), part);
    for (int64_t i = own.begin; i < own.end; ++i) {
      const Sampler::Slot& slot = p.slots[list[i / 2]];
      const int32_t note = (i % 2 == 0 ? slot.query : slot.target).note;
      p.ids.push_back(note);
      if (config_.loss.sampling_correction == SamplingCorrection::logq)
        p.log_q.push_back(sampler_.log_sampling_probability(note));
    }
  }
  p.rows_of.push_back(std::ssize(p.ids) - before);
}

void TrainingStep::take_plan(int64_t step) {
  if (next_plan_.step == step) std::swap(plan_, next_plan_);
  if (plan_.step != step) make_plan(step, plan_);
}

void TrainingStep::prepare(const Plan& plan, int pass, MicroBatch& b) const {
  b.step = plan.step;
  b.pass = pass;
  b.examples.clear();
  for (int32_t slot : plan.lists[mesh_.data.rank()][pass % micro_batches_]) {
    b.examples.push_back(plan.slots[slot].query);
    b.examples.push_back(plan.slots[slot].target);
  }
  pack(notes_, b.examples, config_.train.share_prefix, b.batch);
  b.input.set(b.batch, padded_vocabulary(notes_.prompt.vocabulary), micro_batches_ == 1 || pass >= micro_batches_);
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
  double totals[step_sums] = {sums.loss,
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
  mesh_.world.all_reduce_sum("loss", Tensor::of(totals, {std::ssize(totals)}));
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
  TrainingState& state;
  Tensor z, norm, dz;  // [own notes, note_dim], [own notes], as z
  Tensor losses;       // [labels of the tensor group]
  double token_scale;
  StepResult& result;
  Stopwatch& watch;
  int64_t note = 0, label = 0;  // where the next micro-batch's begin

  const Weights& weights() const { return state.weights.views(); }
  const Weights& gradients() const { return state.gradients.views(); }
};

// Forward to the note vectors, which stay in p.z.
Tensor TrainingStep::embed(Pass& p, MicroBatch& b, bool keep) {
  p.result.seconds.packing += p.watch.lap();
  b.input.wait(p.stream);
  const PassHooks hooks{.begins = [&](int layer) { p.state.weights.begins(p.stream, layer); }, .done = {}};
  const Tensor hidden = transformer_.forward(p.stream, p.weights(), b.input, arena_, keep, hooks);
  const FlatRange own = notes_of_part(std::ssize(b.examples), transformer_.part());
  const auto part = [&](const Tensor& t) { return t.slice(p.note, p.note + own.size()); };
  note_vectors(p.stream, hidden, b.input.note_places().slice(own.begin, own.end), p.weights().note_projection,
               part(p.z), part(p.norm), arena_);
  p.result.seconds.forward += p.watch.lap();
  return hidden;
}

PassHooks TrainingStep::backward_hooks(Pass& p, bool last) {
  return {.begins =
              [&p](int layer) {
                p.state.weights.begins(p.stream, layer);
                p.state.gradients.begins(p.stream, layer);
              },
          .done = [this, &p, last](int layer) { p.state.gradients.done(p.stream, transformer_, layer, last); }};
}

// From the gradient of the note vectors and the token loss to that of the parameters.
void TrainingStep::backward(Pass& p, MicroBatch& b, Tensor hidden, bool last) {
  const FlatRange own = notes_of_part(std::ssize(b.examples), transformer_.part());
  const int64_t labels = b.input.labels().rows();
  const auto part = [&](const Tensor& t) { return t.slice(p.note, p.note + own.size()); };
  const Tensor d_hidden = arena_.allocate(hidden.dtype, {hidden.rows(), hidden.cols()});
  set_zero(p.stream, d_hidden);
  token_loss(p.stream, mesh_.tensor, hidden, b.input.label_places(), b.input.labels(), p.weights().head,
             notes_.prompt.vocabulary, p.token_scale, d_hidden, p.gradients().head,
             p.losses.slice(p.label, p.label + labels), arena_);
  p.result.seconds.token += p.watch.lap();
  note_vectors_backward(p.stream, part(p.dz), hidden, b.input.note_places().slice(own.begin, own.end),
                        p.weights().note_projection, part(p.z), part(p.norm), d_hidden, p.gradients().note_projection,
                        arena_);
  transformer_.backward(p.stream, p.weights(), b.input, d_hidden, p.gradients(), arena_, backward_hooks(p, last));
  b.input.done(p.stream);
  p.result.seconds.backward += p.watch.lap();
  p.note += own.size();
  p.label += labels;
}

StepResult TrainingStep::run(Stream& stream, int64_t step, TrainingState& state, float tau) {
  StepResult result;
  Stopwatch watch;
  take_plan(step);
  arena_.rewind(0);
  state.gradients.begin(stream);
  const int64_t own = plan_.rows_of[mesh_.world.rank()], all = std::ssize(plan_.ids), note_dim = config_.model.note_dim;
  const auto f32 = [&](std::initializer_list<int64_t> sizes) { return arena_.allocate(DType::f32, sizes); };
  const double alpha = config_.loss.alpha, contrastive_scale = 1 / (1 + alpha) / static_cast<double>(all);
  const double token_scale = plan_.labels == 0 ? 0 : alpha / (1 + alpha) / static_cast<double>(plan_.labels);
  Pass p{stream, state, f32({own, note_dim}), f32({own}), f32({own, note_dim}), f32({plan_.own_labels}), token_scale,
         result, watch};
  const bool one_pass = micro_batches_ == 1;
  const bool first_of_group = mesh_.tensor.rank() == 0;  // counts what all of a tensor group have
  const int64_t mark = arena_.mark();

  Tensor hidden;
  for (int i = 0; i < micro_batches_; ++i) {
    MicroBatch& b = take(i);
    hidden = embed(p, b, one_pass);
    if (first_of_group) {
      result.tokens += std::ssize(b.batch.tokens);
      result.unshared_tokens += b.batch.unshared_tokens;
      result.flops += batch_flops(config_.model, b.batch, padded_vocabulary(notes_.prompt.vocabulary), !one_pass,
                                  config_.parallel.recompute == Recompute::layer);
    }
    if (one_pass) break;
    b.input.done(stream);
    p.note += notes_of_part(std::ssize(b.examples), transformer_.part()).size();
    arena_.rewind(mark);
    prepare_next(i);
  }
  contrastive_.run(stream, mesh_.world, {plan_.ids, plan_.log_q, plan_.rows_of}, p.z, tau, contrastive_scale, p.dz,
                   arena_);
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
  copy(stream, Tensor::of(&dtau, {1}), p.gradients().tau);
  state.gradients.finish(stream, transformer_);
  const Tensor losses = losses_.fetch(stream, {p.losses})[0];
  prepare_next(passes() - 1);
  losses_.wait();
  result.seconds.reduce = watch.lap();
  const auto of_rows = losses.span<float>();
  add_up(sums, first_of_group ? std::accumulate(of_rows.begin(), of_rows.end(), 0.0) : 0, result);
  return result;
}

}  // namespace notellm

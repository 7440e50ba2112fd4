#include "training/step.h"

#include <algorithm>
#include <cstring>

#include "losses/token_loss.h"
#include "model/note_head.h"
#include "model/tiles.h"
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
      transformer_(config.model, config.compute()),
      contrastive_(config.loss.mask_known, config.loss.gradient),
      micro_batches_(config.train.micro_batch_pairs == 0
                         ? 1
                         : static_cast<int>(ceil_div(pairs_per_rank(config, ranks), config.train.micro_batch_pairs))),
      arena_(arena_bytes()) {}

int64_t TrainingStep::longest_sequence() const {
  int64_t longest = 0;
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
      longest = std::max(longest, length);
    }
  }
  return longest;
}

int64_t TrainingStep::arena_bytes() const {
  const int64_t pairs = ceil_div(pairs_per_rank(config_, ranks_), micro_batches_);
  const int64_t tokens = 2 * pairs * longest_sequence(), all_notes = 2 * config_.train.pairs_per_step;
  const int64_t vocabulary = padded_vocabulary(notes_.prompt.vocabulary);
  const int64_t vectors = all_notes * config_.model.note_dim * 4 * 4;
  const int64_t logits = tile_rows * (vocabulary + 3 * config_.model.dim) * 8;
  const int64_t attention = tokens * config_.model.kv_dim() * 4;  // room for its workspace
  const int64_t fixed = 256 << 20;                                // infonce's tiles, small tensors
  // Address space, not memory: pages that are never touched cost nothing.
  return transformer_arena_bytes(config_.model, config_.compute(), tokens, tokens) + 2 * vectors + logits + attention +
         fixed;
}

void TrainingStep::plan(int64_t step) {
  const int64_t slots = config_.train.pairs_per_step;
  Plan& p = plan_;
  p.slots.clear();
  p.labels = 0;
  std::vector<int64_t> tokens(slots);
  std::vector<int32_t> sequence;
  for (int64_t i = 0; i < slots; ++i) {
    p.slots.push_back(sampler_.slot(step, i));
    for (const NoteExample* example : {&p.slots.back().query, &p.slots.back().target}) {
      int32_t first_label = 0;
      compose(notes_, *example, sequence, &first_label);
      const auto length = static_cast<int64_t>(sequence.size());
      tokens[i] += length;
      p.labels += example->task == Task::embed ? 0 : length - first_label;
    }
  }
  p.lists = balance(tokens, ranks_.size(), micro_batches_);
  p.ids.clear();
  p.log_q.clear();
  p.rows_of.assign(ranks_.size(), 0);
  for (int rank = 0; rank < ranks_.size(); ++rank)
    for (const auto& list : p.lists[rank])
      for (int32_t slot : list)
        for (const NoteExample* example : {&p.slots[slot].query, &p.slots[slot].target}) {
          p.ids.push_back(example->note);
          if (config_.loss.sampling_correction == SamplingCorrection::logq)
            p.log_q.push_back(sampler_.log_sampling_probability(example->note));
          ++p.rows_of[rank];
        }
}

void TrainingStep::pack_micro_batch(int micro_batch) {
  examples_.clear();
  for (int32_t slot : plan_.lists[ranks_.rank()][micro_batch]) {
    examples_.push_back(plan_.slots[slot].query);
    examples_.push_back(plan_.slots[slot].target);
  }
  pack(notes_, examples_, config_.train.share_prefix, batch_);
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
                     f.infonce};
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
  f = {totals[6], totals[7], totals[8], totals[9]};
}

StepResult TrainingStep::run(Stream& stream, int64_t step, const Weights& weights, float tau,
                             const Weights& gradients) {
  StepResult result;
  Stopwatch watch;
  plan(step);
  arena_.rewind(0);
  std::memset(gradients.flat.data, 0, gradients.flat.bytes());
  const int64_t own = plan_.rows_of[ranks_.rank()], all = static_cast<int64_t>(plan_.ids.size());
  const Tensor z = arena_.allocate(DType::f32, {own, config_.model.note_dim}),
               norm = arena_.allocate(DType::f32, {own});
  const Tensor dz = arena_.allocate(DType::f32, {own, config_.model.note_dim});
  const double alpha = config_.loss.alpha, contrastive_scale = 1 / (1 + alpha) / static_cast<double>(all);
  const double token_scale = plan_.labels == 0 ? 0 : alpha / (1 + alpha) / static_cast<double>(plan_.labels);
  const bool one_pass = micro_batches_ == 1;
  const int64_t mark = arena_.mark();

  Tensor hidden;
  int64_t row = 0;
  for (int i = 0; i < micro_batches_; ++i) {
    pack_micro_batch(i);
    const int64_t rows = static_cast<int64_t>(examples_.size());
    input_.set(batch_, one_pass);
    result.seconds.packing += watch.lap();
    hidden = transformer_.forward(stream, weights, input_, arena_, one_pass);
    note_vectors(stream, hidden, input_.note_places(), weights.note_projection, z.slice(row, row + rows),
                 norm.slice(row, row + rows), arena_);
    row += rows;
    result.tokens += batch_.tokens.size();
    result.unshared_tokens += batch_.unshared_tokens;
    result.flops += batch_flops(config_.model, batch_, weights.head.rows(), !one_pass);
    result.seconds.forward += watch.lap();
    if (!one_pass) arena_.rewind(mark);
  }

  double dtau = 0, token_sum = 0;
  const ContrastiveSums sums = contrastive_.run(stream, ranks_, {plan_.ids, plan_.log_q, plan_.rows_of}, z, tau,
                                                contrastive_scale, dz, &dtau, arena_);
  *gradients.tau.as<float>() = static_cast<float>(dtau);
  result.flops += infonce_flops(own, all, config_.model.note_dim);
  result.seconds.contrastive = watch.lap();

  row = 0;
  for (int i = 0; i < micro_batches_; ++i) {
    if (!one_pass) {
      pack_micro_batch(i);
      input_.set(batch_, true);
      result.seconds.packing += watch.lap();
      hidden = transformer_.forward(stream, weights, input_, arena_, true);
      result.seconds.forward += watch.lap();
    }
    const int64_t rows = static_cast<int64_t>(examples_.size());
    const Tensor d_hidden = arena_.allocate(hidden.dtype, {hidden.rows(), hidden.cols()});
    std::memset(d_hidden.data, 0, d_hidden.bytes());
    token_sum += token_loss(stream, hidden, input_.label_places(),
                            Tensor::of(batch_.labels.data(), {static_cast<int64_t>(batch_.labels.size())}),
                            weights.head, notes_.prompt.vocabulary, token_scale, d_hidden, gradients.head, arena_);
    result.seconds.token += watch.lap();
    note_vectors_backward(stream, dz.slice(row, row + rows), hidden, input_.note_places(), weights.note_projection,
                          z.slice(row, row + rows), norm.slice(row, row + rows), d_hidden, gradients.note_projection,
                          arena_);
    transformer_.backward(stream, weights, input_, d_hidden, gradients, arena_);
    result.seconds.backward += watch.lap();
    row += rows;
    if (!one_pass) arena_.rewind(mark);
  }
  ranks_.all_reduce_sum("gradients", gradients.flat);
  result.seconds.reduce = watch.lap();

  add_up(sums, token_sum, result);
  return result;
}

}  // namespace notellm

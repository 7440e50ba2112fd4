#include "training/step.h"

#include <algorithm>
#include <cstring>

#include "losses/token_loss.h"
#include "model/note_head.h"
#include "model/tiles.h"

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

StepResult TrainingStep::run(Stream& stream, int64_t step, const Weights& weights, float tau,
                             const Weights& gradients) {
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
  StepResult result;

  Tensor hidden;
  int64_t row = 0;
  for (int i = 0; i < micro_batches_; ++i) {
    pack_micro_batch(i);
    const int64_t rows = static_cast<int64_t>(examples_.size());
    input_.set(batch_, one_pass);
    hidden = transformer_.forward(stream, weights, input_, arena_, one_pass);
    note_vectors(stream, hidden, input_.note_places(), weights.note_projection, z.slice(row, row + rows),
                 norm.slice(row, row + rows), arena_);
    row += rows;
    result.tokens += batch_.tokens.size();
    result.unshared_tokens += batch_.unshared_tokens;
    if (!one_pass) arena_.rewind(mark);
  }

  double dtau = 0, token_sum = 0;
  const ContrastiveSums sums = contrastive_.run(stream, ranks_, {plan_.ids, plan_.log_q, plan_.rows_of}, z, tau,
                                                contrastive_scale, dz, &dtau, arena_);
  *gradients.tau.as<float>() = static_cast<float>(dtau);

  row = 0;
  for (int i = 0; i < micro_batches_; ++i) {
    if (!one_pass) {
      pack_micro_batch(i);
      input_.set(batch_, true);
      hidden = transformer_.forward(stream, weights, input_, arena_, true);
    }
    const int64_t rows = static_cast<int64_t>(examples_.size());
    const Tensor d_hidden = arena_.allocate(hidden.dtype, {hidden.rows(), hidden.cols()});
    std::memset(d_hidden.data, 0, d_hidden.bytes());
    note_vectors_backward(stream, dz.slice(row, row + rows), hidden, input_.note_places(), weights.note_projection,
                          z.slice(row, row + rows), norm.slice(row, row + rows), d_hidden, gradients.note_projection,
                          arena_);
    token_sum += token_loss(stream, hidden, input_.label_places(),
                            Tensor::of(batch_.labels.data(), {static_cast<int64_t>(batch_.labels.size())}),
                            weights.head, notes_.prompt.vocabulary, token_scale, d_hidden, gradients.head, arena_);
    transformer_.backward(stream, weights, input_, d_hidden, gradients, arena_);
    row += rows;
    if (!one_pass) arena_.rewind(mark);
  }
  ranks_.all_reduce_sum("gradients", gradients.flat);

  double totals[] = {sums.loss,
                     token_sum,
                     sums.positive_similarity,
                     sums.negative_similarity,
                     double(result.tokens),
                     double(result.unshared_tokens)};
  ranks_.all_reduce_sum("loss", Tensor::of(totals, {6}));
  result.notes = all;
  result.labels = plan_.labels;
  result.contrastive = totals[0] / all;
  result.token = plan_.labels == 0 ? 0 : totals[1] / plan_.labels;
  result.loss = (result.contrastive + alpha * result.token) / (1 + alpha);
  result.positive_similarity = totals[2] / all;
  result.negative_similarity = totals[3] / all;
  result.tokens = static_cast<int64_t>(totals[4]);
  result.unshared_tokens = static_cast<int64_t>(totals[5]);
  return result;
}

}  // namespace notellm

#include "model/decoder.h"

#include "kernels/decode_attention.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/gemm_panels.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "model/note_head.h"
#include "model/transformer_pass.h"

namespace notellm {

// One row a note, in the arena.
struct Decoder::Step {
  Tensor x, y, sums;      // [m, dim]: the residual stream, normed rows, what is added to it
  Tensor rms;             // [m]
  Tensor q, kv;           // [m, heads, head_dim], [m, 2·kv_heads, head_dim]
  Tensor gate_up, inner;  // [m, 2·ffn], [m, ffn]

  Step(Arena& arena, const ModelConfig& c, DType compute, int64_t m)
      : x(arena.allocate(compute, {m, c.dim})),
        y(arena.allocate(compute, {m, c.dim})),
        sums(arena.allocate(compute, {m, c.dim})),
        rms(arena.allocate(DType::f32, {m})),
        q(arena.allocate(compute, {m, c.heads, c.head_dim})),
        kv(arena.allocate(compute, {m, 2 * c.kv_heads, c.head_dim})),
        gate_up(arena.allocate(compute, {m, 2 * c.ffn})),
        inner(arena.allocate(compute, {m, c.ffn})) {}

  // Bytes of arena for m notes.
  static int64_t bytes(const ModelConfig& c, DType compute, int64_t m) {
    return m * ((3 * c.dim + c.q_dim() + c.kv_dim() + 3 * c.ffn) * size_of(compute) + 4) + 8 * 64;
  }
};

Decoder::Decoder(const ModelConfig& config, DType compute, Device device, Communicator* tensor)
    : transformer_(config, compute, device, {}, tensor),
      device_(device),
      input_(device, {}, transformer_.part()),
      upload_(device) {}

void Decoder::begin(Stream& stream, const Weights& weights, const PackedBatch& batch, int64_t new_tokens,
                    Tensor vectors) {
  const int64_t count = std::ssize(batch.note_rows);
  NOTELLM_CHECK(vectors.empty() || vectors.rows() == count, "{} for {} notes", describe(vectors), count);
  vocabulary_ = weights.head.rows();
  find_notes(batch);
  room_ = 0;
  for (const Note& n : notes_)
    room_ = std::max(room_, std::min(new_tokens, int64_t{transformer_.config().context} - n.prompt_tokens));
  prompt_rows_ = std::ssize(batch.tokens);
  reserve(prompt_rows_ + count * room_);
  input_.set(batch, weights.embedding.rows() * part().count, true);
  reserve_arena(count);
  arena_->rewind(0);
  set_weights(weights);
  PassHooks hooks;
  hooks.keys_and_values = [&](int layer) { return cache(layer).slice(0, prompt_rows_); };
  input_.wait(stream);
  const Tensor hidden = transformer_.forward(stream, *weights_, input_, *arena_, false, hooks);
  if (!vectors.empty()) {
    const Tensor z = arena_->allocate(DType::f32, {count, vectors.cols()}),
                 norm = arena_->allocate(DType::f32, {count});
    note_vectors(stream, hidden, input_.note_places(), weights.note_projection, z, norm, *arena_);
    copy(stream, z, vectors);
  }
  const Tensor last = arena_->allocate(transformer_.compute(), {count, hidden.cols()});
  gather_rows(stream, hidden, input_.label_places(), last);
  input_.done(stream);
  find_logits(stream, last);
  stream.synchronize();  // vectors are in memory of the host
}

// Each note's segment is the one that its label row lies in.
void Decoder::find_notes(const PackedBatch& batch) {
  const auto count = static_cast<int64_t>(batch.note_rows.size());
  NOTELLM_CHECK(std::ssize(batch.label_rows) == count, "{} label rows of {} notes", batch.label_rows.size(), count);
  notes_.clear();
  auto segment = batch.segments.begin();
  for (const int32_t row : batch.label_rows) {
    while (segment != batch.segments.end() && segment->end <= row) ++segment;
    NOTELLM_CHECK(segment != batch.segments.end() && row == segment->end - 1, "label row {} does not end a prompt",
                  row);
    const Segment prefix = segment->prefix < 0 ? Segment{0, 0, -1} : batch.segments[segment->prefix];
    const int32_t tokens = batch.positions[row] + 1;
    if (tokens > transformer_.config().context)
      fail(ErrorKind::data,
           "a prompt has {} tokens, more than the model's context of {}: lower data.prompt.max_note_tokens", tokens,
           transformer_.config().context);
    notes_.push_back({prefix.begin, prefix.end, segment->begin, segment->end, tokens, 0});
  }
}

int64_t Decoder::room(int32_t note) const {
  const Note& n = notes_[note];
  return std::min(room_, transformer_.config().context - int64_t{n.prompt_tokens}) - n.new_tokens;
}

void Decoder::reserve(int64_t rows) {
  const ModelConfig& c = transformer_.config();
  const int64_t bytes = c.layers * rows * c.kv_dim() * size_of(transformer_.compute());
  if (cache_memory_.bytes() < bytes) {
    cache_memory_ = {};  // the old memory first
    cache_memory_ = Buffer(bytes, memory_of(device_), "the cache of keys and values (evaluate.batch_notes)");
  }
  cache_rows_ = rows;
}

Tensor Decoder::cache(int layer) const {
  const ModelConfig& c = transformer_.config();
  return cache_memory_.tensor(transformer_.compute(), {c.layers * cache_rows_, 2 * c.kv_heads, c.head_dim})
      .slice(layer * cache_rows_, (layer + 1) * cache_rows_);
}

// For the prompts of input_, and for steps of all their notes.
void Decoder::reserve_arena(int64_t notes) {
  const ModelConfig& c = transformer_.config();
  const DType compute = transformer_.compute();
  const int64_t logits = notes * vocabulary_ * 4 + 64;
  const int64_t prompts = transformer_.arena_bytes(input_.tokens(), input_.hidden_rows(), false) +
                          notes * (2 * c.dim * size_of(compute) + (c.note_dim + 1) * 4) + (1 << 12);
  const int64_t bytes = std::max(prompts, Step::bytes(c, compute, notes)) + logits;
  if (arena_ && arena_->capacity_bytes() >= bytes) return;
  arena_.reset();  // the old memory first
  arena_.emplace(bytes + bytes / 4, memory_of(device_));
}

// Turning the weights takes as long as reading them a few times.
void Decoder::set_weights(const Weights& weights) {
  weights_ = weights;
  if (device_ != Device::cpu || transformer_.compute() != DType::bf16 || !panels_pay()) return;
  const auto for_each = [&](const auto& work) {
    const auto if_it_fits = [&](Tensor& matrix, auto* turned) {
      if (fits_panels(matrix)) work(matrix, turned);
    };
    if_it_fits(weights_->head, to_panels);
    for (LayerWeights& w : weights_->layers) {
      for (Tensor* matrix : {&w.q, &w.kv, &w.o, &w.down}) if_it_fits(*matrix, to_panels);
      if_it_fits(w.gate_up, to_gated_panels);
    }
  };
  int64_t bytes = 0;
  for_each([&](const Tensor& matrix, auto*) { bytes += panel_bytes(matrix); });
  if (panels_.bytes() < bytes) panels_ = Buffer(bytes, memory_of(device_), "the weights in panels");
  char* to = static_cast<char*>(panels_.data());
  for_each([&](Tensor& matrix, auto* turned) {
    matrix = turned(matrix, to);
    to += panel_bytes(matrix);
  });
}

void Decoder::step(Stream& stream, std::span<const int32_t> notes, std::span<const int32_t> tokens) {
  NOTELLM_CHECK(notes.size() == tokens.size(), "{} tokens of {} notes", tokens.size(), notes.size());
  set_step(notes, tokens);
  arena_->rewind(0);
  const ModelConfig& c = transformer_.config();
  const Step s(*arena_, c, transformer_.compute(), std::ssize(notes));
  upload_.wait(stream);
  embedding(stream, tokens_, weights_->embedding, s.x);
  sum_over_parts(stream, s.x);
  run_layers(stream, s);
  upload_.done(stream);
  rms_norm(stream, s.x, s.sums, weights_->final_norm, static_cast<float>(c.norm_eps), s.x, s.y, s.rms);
  find_logits(stream, s.y);
}

void Decoder::set_step(std::span<const int32_t> notes, std::span<const int32_t> tokens) {
  Lists& l = lists_;
  l = {};
  const auto first = static_cast<int32_t>(vocabulary_ * part().index);
  for (size_t i = 0; i < notes.size(); ++i) {
    NOTELLM_CHECK(room(notes[i]) > 0, "note {} has no room for a token", notes[i]);
    Note& n = notes_[notes[i]];
    const int32_t token = tokens[i] - first, fresh = static_cast<int32_t>(prompt_rows_ + notes[i] * room_);
    l.tokens.push_back(token >= 0 && token < vocabulary_ ? token : -1);
    l.positions.push_back(n.prompt_tokens + n.new_tokens);
    l.runs.insert(l.runs.end(), {n.prefix_begin, n.prefix_end, n.begin, n.end, fresh, fresh + n.new_tokens});
    l.place.push_back(fresh + n.new_tokens++);
  }
  const auto m = std::ssize(notes);
  upload_.send({{Tensor::of(l.tokens.data(), {m}), &tokens_},
                {Tensor::of(l.positions.data(), {m}), &positions_},
                {Tensor::of(l.runs.data(), {m, 3, 2}), &runs_},
                {Tensor::of(l.place.data(), {m}), &place_}});
}

// From the embedded tokens in x to the last layer's x, and in `sums` what is still to be added to it.
void Decoder::run_layers(Stream& stream, const Step& s) {
  const ModelConfig& c = transformer_.config();
  const auto eps = static_cast<float>(c.norm_eps);
  const Tensor q = matrix(s.q), kv = matrix(s.kv), table = transformer_.rope_;
  const PassHooks none;
  const Transformer::Pass pass{stream, *weights_, input_, *arena_, none};
  for (int layer = 0; layer < c.layers; ++layer) {
    const LayerWeights& w = weights_->layers[layer];
    rms_norm(stream, s.x, layer == 0 ? Tensor() : s.sums, w.input_norm, eps, s.x, s.y, s.rms);
    for_tiles(*arena_, q.rows(), [&](int64_t begin, int64_t end) {
      const Tensor y = s.y.slice(begin, end);
      transformer_.project(pass, y, w.q, w.q_bias, q.slice(begin, end));
      transformer_.project(pass, y, w.kv, w.kv_bias, kv.slice(begin, end));
    });
    rope(stream, q, positions_, table, c.heads, c.head_dim, +1);
    rope(stream, kv, positions_, table, c.kv_heads, c.head_dim, +1);
    decode_attention(stream, s.q, s.kv, cache(layer), runs_, place_, s.q);
    gemm(stream, q, as_is, w.o, transposed, s.sums);
    sum_over_parts(stream, s.sums);
    rms_norm(stream, s.x, s.sums, w.post_norm, eps, s.x, s.y, s.rms);
    transformer_.gate(pass, s.y, w.gate_up, s.gate_up, s.inner);
    gemm(stream, s.inner, as_is, w.down, transposed, s.sums);
    sum_over_parts(stream, s.sums);
  }
}

void Decoder::sum_over_parts(Stream& stream, Tensor t) {
  if (part().count > 1) tensor().all_reduce_sum(stream, "decoded rows", t);
}

void Decoder::find_logits(Stream& stream, Tensor hidden) {
  logits_ = arena_->allocate(DType::f32, {hidden.rows(), vocabulary_});
  gemm(stream, hidden, as_is, weights_->head, transposed, logits_);
}

}  // namespace notellm

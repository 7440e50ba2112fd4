#include "evaluation/embedder.h"

#include <cmath>

#include "model/note_head.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

int64_t arena_bytes(const Transformer& transformer, int64_t tokens, int64_t notes) {
  const ModelConfig& config = transformer.config();
  // … the vectors and gathered rows, and alignment
  return transformer.arena_bytes(tokens, notes, false) +
         notes * (config.dim * size_of(transformer.compute()) + (config.note_dim + 1) * 4) + (1 << 12);
}

}  // namespace

void require_unit_vectors(Tensor vectors, const std::function<std::string(int64_t)>& id_of) {
  for (int64_t i = 0; i < vectors.rows(); ++i) {
    double square = 0;
    for (const float x : vectors.slice(i, i + 1).span<float>()) square += double{x} * x;
    if (!(std::abs(square - 1) < 0.01))
      fail(ErrorKind::diverged,
           "the vector of note {} has length {:.3g}, not 1: the weights are broken, or training diverged", id_of(i),
           std::sqrt(square));
  }
}

Embedder::Embedder(const ModelConfig& config, DType compute, int batch_notes, Device device, Communicator* tensor)
    : transformer_(config, compute, device, {}, tensor),
      batch_notes_(batch_notes),
      device_(device),
      input_(device, {}, transformer_.part()) {}

void Embedder::embed(Stream& stream, Communicator& ranks, const Weights& weights, const NoteTable& notes,
                     std::span<const int32_t> which, Tensor out, bool show, const PassHooks& hooks) {
  const auto all = static_cast<int64_t>(which.size());
  NOTELLM_CHECK(out.rows() == all, "{} for {} notes", describe(out), all);
  std::vector<int64_t> rows_of(ranks.size());
  const auto begin_of = [&](int rank) { return all * rank / ranks.size(); };
  for (int rank = 0; rank < ranks.size(); ++rank) rows_of[rank] = begin_of(rank + 1) - begin_of(rank);

  const int64_t first = begin_of(ranks.rank()), own = rows_of[ranks.rank()];
  Buffer memory(own * out.cols() * 4);
  const Tensor mine = memory.tensor(DType::f32, {own, out.cols()});
  Progress progress("embed notes", own, show && ranks.rank() == 0);
  // Ranks without notes left go through the motions where a forward pass is a collective.
  const int64_t passes_over = hooks.begins ? std::ranges::max(rows_of) : own;
  for (int64_t next = 0; next < passes_over; next += batch_notes_) {
    const int64_t begin = std::min(own, next), end = std::min(own, next + batch_notes_);
    embed_batch(stream, weights, notes, which.subspan(first + begin, end - begin), mine.slice(begin, end), hooks);
    progress.advance(end - begin);
  }
  ranks.all_gather_rows("note vectors", mine, rows_of, out);
  require_unit_vectors(out, [&](int64_t i) { return notes.ids[which[i]]; });
}

void Embedder::embed_batch(Stream& stream, const Weights& weights, const NoteTable& notes,
                           std::span<const int32_t> which, Tensor out, const PassHooks& hooks) {
  examples_.clear();
  for (int32_t note : which) examples_.push_back({note, Task::category, {}, Until::note});
  pack(notes, examples_, true, batch_);
  for (size_t i = 0; i < which.size(); ++i)
    if (batch_.positions[batch_.note_rows[i]] >= transformer_.config().context)
      fail(ErrorKind::data,
           "note '{}' makes a sequence of {} tokens, more than the model's context of {}: lower "
           "data.prompt.max_note_tokens",
           notes.ids[which[i]], batch_.positions[batch_.note_rows[i]] + 1, transformer_.config().context);
  input_.set(batch_, weights.embedding.rows() * transformer_.part().count, false);
  const int64_t bytes = arena_bytes(transformer_, input_.tokens(), out.rows());
  if (!arena_ || arena_->capacity_bytes() < bytes) {
    arena_.reset();  // the old memory first
    arena_.emplace(bytes + bytes / 4, memory_of(device_));
  }
  arena_->rewind(0);
  input_.wait(stream);
  const Tensor hidden = transformer_.forward(stream, weights, input_, *arena_, false, hooks);
  const Tensor z = arena_->allocate(DType::f32, {out.rows(), out.cols()});
  const Tensor norm = arena_->allocate(DType::f32, {out.rows()});
  note_vectors(stream, hidden, input_.note_places(), weights.note_projection, z, norm, *arena_);
  input_.done(stream);
  copy(stream, z, out);
  stream.synchronize();
}

}  // namespace notellm

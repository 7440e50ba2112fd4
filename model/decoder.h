// Next tokens of many notes: the packed forward pass reads all prompts at once, then each step reads one new token a
// note and attends to the keys and values that a cache keeps.
//
// The cache has a row a token, for each layer [rows, 2·kv_heads, head_dim]: first the tokens of the packed batch as
// they stand there, so that a beginning which prompts share is kept, and attended to, once; then each note's new
// tokens. Notes that are done are left out of the next step and cost nothing.
//
// On a tensor group each rank has its heads, its part of the feed-forward layer and of the logits; in a step the
// residual stream is whole on each rank (rows are few), and sums over inputs are all-reduced twice a layer.
#pragma once

#include <span>
#include <vector>

#include "model/transformer.h"

namespace notellm {

class Decoder {
 public:
  // As Transformer's.
  Decoder(const ModelConfig& config, DType compute, Device device = Device::cpu, Communicator* tensor = nullptr);

  // Reads the prompts of a batch, each of which ends at its note's only label row, and makes room for new_tokens tokens
  // a note, or as many as the context leaves. vectors: f32 [notes, note_dim] in host memory for the vectors at the note
  // rows, or empty. Throws Error: a note with another number of label rows than one; Error(data): a prompt longer than
  // the model's context.
  void begin(Stream& stream, const Weights& weights, const PackedBatch& batch, int64_t new_tokens, Tensor vectors = {});
  // One new token of each of some notes (their places in the batch, ascending), by the same weights, which must still
  // be there. Throws Error: no room for it.
  void step(Stream& stream, std::span<const int32_t> notes, std::span<const int32_t> tokens);

  // What the last begin (a row a note) or step (a row a note of it) predicts: f32 [rows, the part's vocabulary], of the
  // device, until the next of these calls. The caller may change it.
  Tensor logits() const { return logits_; }

  // How many more tokens the note may get: for which there is room, and positions.
  int64_t room(int32_t note) const;
  int32_t new_tokens(int32_t note) const { return notes_[note].new_tokens; }  // that it got so far
  Communicator& tensor() { return transformer_.tensor(); }
  TensorPart part() const { return transformer_.part(); }
  int64_t cache_bytes() const { return cache_memory_.bytes(); }

 private:
  // A prompt's place in the cache.
  struct Note {
    int32_t prefix_begin, prefix_end, begin, end;  // rows
    int32_t prompt_tokens, new_tokens;
  };
  struct Step;  // the tensors of one

  void find_notes(const PackedBatch& batch);
  void reserve(int64_t rows);
  void reserve_arena(int64_t notes);
  Tensor cache(int layer) const;
  void set_step(std::span<const int32_t> notes, std::span<const int32_t> tokens);
  void set_weights(const Weights& weights);
  void run_layers(Stream& stream, const Step& s);
  void sum_over_parts(Stream& stream, Tensor t);
  void find_logits(Stream& stream, Tensor hidden);

  Transformer transformer_;
  Device device_;
  std::optional<Weights> weights_;  // those of begin; their matrices in panels where that pays
  Buffer panels_;
  std::optional<Arena> arena_;  // as large as the largest batch so far needs
  ModelInput input_;
  Buffer cache_memory_;
  int64_t cache_rows_ = 0, prompt_rows_ = 0, room_ = 0;
  int64_t vocabulary_ = 0;  // of the part
  std::vector<Note> notes_;
  Tensor logits_;
  // A step's lists, and what the ops read of them, on the device.
  struct Lists {
    std::vector<int32_t> tokens, positions, runs, place;
  };
  Lists lists_;
  Upload upload_;
  Tensor tokens_, positions_, runs_, place_;
};

}  // namespace notellm

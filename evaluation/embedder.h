// Note vectors of many notes: what evaluation, `embed` and `neighbors` share.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>

#include "model/transformer.h"
#include "runtime/communicator.h"

namespace notellm {

// Throws Error(diverged), naming the note, where a row of `vectors` (f32, host memory) is not of length 1: NaN or Inf
// in the weights, or numbers that they made overflow. id_of(i): the note of row i.
void require_unit_vectors(Tensor vectors, const std::function<std::string(int64_t)>& id_of);

class Embedder {
 public:
  // batch_notes: notes that are computed at once, on the device. tensor: as Transformer's.
  Embedder(const ModelConfig& config, DType compute, int batch_notes, Device device = Device::cpu,
           Communicator* tensor = nullptr);

  // Normalised vectors of rows of the note table (of their category prompt up to the row before [EMB]): out[i, :] for
  // notes[i], f32 [notes.size(), note_dim] in host memory. Stream and weights are the device's. Shared out over the
  // ranks, with a tensor group over the data group; every rank gets all. `show`: progress. hooks: as forward's; all
  // ranks make as many forward passes. Throws Error(diverged) as require_unit_vectors does.
  void embed(Stream& stream, Communicator& ranks, const Weights& weights, const NoteTable& notes,
             std::span<const int32_t> which, Tensor out, bool show, const PassHooks& hooks = {});

 private:
  void embed_batch(Stream& stream, const Weights& weights, const NoteTable& notes, std::span<const int32_t> which,
                   Tensor out, const PassHooks& hooks);

  Transformer transformer_;
  int batch_notes_;
  Device device_;
  std::optional<Arena> arena_;  // as large as the largest batch so far needs
  std::vector<NoteExample> examples_;
  PackedBatch batch_;
  ModelInput input_;
};

}  // namespace notellm

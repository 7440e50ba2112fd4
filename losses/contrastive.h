// The contrastive loss of the whole step: InfoNCE over the note vectors of all ranks, and its exact gradient.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "losses/contrastive_mask.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/transfer.h"

namespace notellm {

// exact: the gradient of the global loss. released_code: what the authors' code computes on W ranks, where the encoder
// gets 1/W of the contrastive gradient (and tau all of it): for comparison only (notellm.md §5).
enum class ContrastiveGradient { exact, released_code };

struct ContrastiveSums {
  double loss = 0;                 // Σ over this rank's rows
  double positive_similarity = 0;  // Σ of the cosine to the positive
  double negative_similarity = 0;  // Σ of the row's mean cosine to its negatives
  double dtau = 0;                 // this rank's part of scale · ∂loss/∂tau
};

// One step's notes, in the gathered order: rank after rank. Notes 2i and 2i + 1 are a pair.
struct GatheredNotes {
  std::span<const int64_t> ids;      // [all notes]
  std::span<const float> log_q;      // [all notes], or empty: no sampling correction
  std::span<const int64_t> rows_of;  // [ranks] how many belong to each rank
};

class Contrastive {
 public:
  // released_code_ranks: W of the authors' code, the ranks with notes of their own.
  Contrastive(bool mask_known, ContrastiveGradient gradient, int released_code_ranks, Device device = Device::cpu)
      : mask_known_(mask_known),
        share_(gradient == ContrastiveGradient::released_code ? 1.0f / static_cast<float>(released_code_ranks) : 1.0f),
        upload_(device),
        download_(device) {}

  // z [own rows, d] f32: this rank's normalised vectors. On return (CUDA: in the stream's order) dz holds
  // scale · ∂(Σ over all rows of all ranks of loss_i)/∂z. A collective: all ranks call it with the same `notes`, which
  // must live until sums().
  void run(Stream& stream, Communicator& ranks, const GatheredNotes& notes, Tensor z, float tau, double scale,
           Tensor dz, Arena& arena);
  // Of the last run. Waits for that, not for what the stream does after it.
  ContrastiveSums sums() const;

 private:
  bool mask_known_;
  float share_;  // of the contrastive gradient that the encoder gets
  ContrastiveMask mask_;
  std::vector<int32_t> own_rows_;  // 0, 1, …
  Upload upload_;
  Download download_;
  // What sums() needs of the last run.
  GatheredNotes notes_;
  int64_t first_ = 0;
  float tau_ = 0;
  std::vector<Tensor> found_;  // in host memory: lse, positive, similarity of each row; dtau
};

}  // namespace notellm

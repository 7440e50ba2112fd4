// The contrastive loss of the whole step: InfoNCE over the note vectors of all ranks, and its exact gradient.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "losses/contrastive_mask.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace notellm {

// exact: the gradient of the global loss. released_code: what the authors' code computes on W ranks, where the encoder
// gets 1/W of the contrastive gradient (and tau all of it): for comparison only (notellm.md §5).
enum class ContrastiveGradient { exact, released_code };

struct ContrastiveSums {
  double loss = 0;                 // Σ over this rank's rows
  double positive_similarity = 0;  // Σ of the cosine to the positive
  double negative_similarity = 0;  // Σ of the row's mean cosine to its negatives
};

// One step's notes, in the gathered order: rank after rank. Notes 2i and 2i + 1 are a pair.
struct GatheredNotes {
  std::span<const int64_t> ids;      // [all notes]
  std::span<const float> log_q;      // [all notes], or empty: no sampling correction
  std::span<const int64_t> rows_of;  // [ranks] how many belong to each rank
};

class Contrastive {
 public:
  Contrastive(bool mask_known, ContrastiveGradient gradient) : mask_known_(mask_known), gradient_(gradient) {}

  // z [own rows, d] f32: this rank's normalised vectors. On return dz holds scale · ∂(Σ over all rows of all ranks of
  // loss_i)/∂z and *dtau this rank's part of the same for tau. A collective: all ranks call it with the same `notes`.
  ContrastiveSums run(Stream& stream, Communicator& ranks, const GatheredNotes& notes, Tensor z, float tau,
                      double scale, Tensor dz, double* dtau, Arena& arena);

 private:
  bool mask_known_;
  ContrastiveGradient gradient_;
  ContrastiveMask mask_;
};

}  // namespace notellm

// The training loop: steps, optimizer, metrics, checkpoints, evaluations on a sample, and the end asked for by a
// signal.
#pragma once

#include <string>

#include "runtime/communicator.h"
#include "training/config.h"

namespace notellm {

// How a run ended. preempted: TERM or USR1 came; all ranks agreed, the state is saved: exit code 85 asks to be queued
// again.
enum class TrainingEnd { finished, preempted };
inline constexpr int preempted_exit_code = 85;

// Trains the model of `config` on its shards, with all ranks of `ranks`. `resume`:
//   "never"  start anew (an error when the run's folder has checkpoints)
//   "auto"   from the newest checkpoint, or anew when there is none
//   else     from the checkpoint in that folder, or the newest of that run
// A checkpoint of other settings (data, loss, optimizer, seed, …) is gone on from, with a warning that names the keys.
// Throws Error: usage (sizes, a run that exists, another training in its folder), data (shards), checkpoint (damaged, or of another model or
// tokenizer), peer (ranks that disagree), diverged after train.most_skipped_steps steps in a row with NaN or Inf.
TrainingEnd train(const RunConfig& config, const std::string& resume, Communicator& ranks);

}  // namespace notellm

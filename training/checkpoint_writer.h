// Saving while training goes on, by all ranks at once.
//
// A save is a snapshot of what the rank keeps, for which the step waits, and then phases in the background, each a task
// on a thread of its own that touches files alone, no collective and no GPU:
//
//   create    rank 0: the folder, every file with its header and its room on the disk, the small files
//   write     each rank: its pieces, at their places in the files; synced
//   check     each rank: the checksums of its share of the files
//   publish   rank 0: the manifest; the folder gets its name; `latest` moves; old checkpoints go
//
// A phase begins when all ranks have ended the one before. They tell each other at the end of a step, in the collective
// that the trainer has there anyway: every rank puts standing() into it and gives all ranks' to proceed(). So a save
// lasts at least four steps, and all ranks are in the same phase of the same save at all times.
//
// A save that fails on any rank (disk full, folder gone, no permission) leaves nothing: its partial folder is removed,
// rank 0 warns, and training goes on. After train.most_failed_checkpoints of them in a row it does not.
#pragma once

#include <future>
#include <span>
#include <string>
#include <vector>

#include "runtime/stopwatch.h"
#include "training/checkpoint_plan.h"
#include "training/manifest.h"
#include "training/state.h"

namespace notellm {

class CheckpointWriter {
 public:
  // The references must live as long as this. Reads the tokenizer of data.shards, and takes the snapshot's memory.
  CheckpointWriter(const RunConfig& config, const NoteTable& notes, const TrainingState& state,
                   int64_t file_bytes = checkpoint_file_bytes);

  // Of a rank's snapshot: weights and moments of what it writes, f32.
  static int64_t memory_bytes(const ParameterLayout& layout, const ShardMap& shards);

  // Takes the snapshot, from the order of `stream`; afterwards weights and moments may change. Waits for the save
  // before. A collective. Throws Error(io): that one failed, and so did too many in a row.
  void begin(Stream& stream, const TrainingPosition& position);

  // How the rank's part of the phase stands.
  enum class Standing : int64_t { done, working, failed };
  Standing standing();
  // A collective where a save failed or its checksums are due; else nothing is sent. Throws Error(io): too many saves
  // in a row failed.
  void proceed(std::span<const Standing> of_ranks);

  // Waits for the save under way, if any. A collective. Throws Error(io): it failed.
  void finish();

 private:
  enum class Phase { none, create, write, check, publish };

  void start(Phase phase);
  void create();
  void write() const;
  void check();
  void publish() const;
  void advance(std::span<const Standing> of_ranks);
  void end_phase();
  void give_up();
  void wait_for_end();
  void tolerate();
  void gather_checksums();
  size_t first_file_of(int rank) const { return plan_.files().size() * rank / state_.mesh.world.size(); }

  const RunConfig& config_;
  const TrainingState& state_;
  CheckpointPlan plan_;
  TokenizerFiles tokenizer_;
  std::string hugging_face_config_;  // content of a small file
  std::vector<ShardMap::Run> runs_;  // of this rank to write; `at` is the place in the snapshot
  Buffer snapshot_;                  // f32: weights, first and second moments of the runs

  Phase phase_ = Phase::none;
  Manifest manifest_;              // of the save under way
  std::filesystem::path final_;    // where it will stand
  std::vector<std::string> sums_;  // of the rank's share of the files
  std::string failure_, reason_;   // of this rank's part; why the last save failed, empty when it did not
  int failed_in_a_row_ = 0;
  double waited_seconds_ = 0;  // of training for the save under way
  Stopwatch since_begin_;
  std::future<void> work_;  // last, so that it ends before what it uses goes
};

}  // namespace notellm

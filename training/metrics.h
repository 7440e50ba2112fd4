// What a run reports: a progress line, metrics.jsonl (a line is on disk before the next step ends) and TensorBoard
// events.
#pragma once

#include <filesystem>
#include <optional>

#include "training/step.h"
#include "training/tensorboard.h"

namespace notellm {

struct StepMetrics {
  int64_t step = 0;  // steps done, this one included
  StepResult result;
  double tau = 0, gradient_norm = 0, learning_rate = 0, seconds = 0;
  int64_t skipped = 0;  // steps with NaN or Inf so far
};

// Rank 0's. Appends to files that a resumed run finds, after dropping lines of steps that it will do again. Throws
// Error(io) where the files cannot be made. A full disk or a removed folder later on are survived: warnings say so;
// lines are kept and written when there is room again, TensorBoard's events end.
class Metrics {
 public:
  Metrics(const std::filesystem::path& run, int64_t first_step, int64_t steps, int log_every);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void step(const StepMetrics& metrics);
  // Recall on a sample of the test pairs during training.
  void evaluation(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  // Throws Error(io): there are lines that could not be written.
  void finish();

 private:
  void reopen_if_removed();
  void write_line(const std::string& line);
  void write_event(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  void show(const StepMetrics& metrics);

  std::filesystem::path path_;
  int file_ = -1;
  std::string unwritten_;  // lines
  std::string failure_;    // why they are
  std::optional<TensorBoardWriter> tensorboard_;
  int64_t steps_;
  int log_every_;
  // since the last progress line
  double seconds_ = 0;
  int64_t notes_ = 0, tokens_ = 0, shown_steps_ = 0;
};

// Most memory this process has held, in bytes.
int64_t peak_memory_bytes();

}  // namespace notellm

#include "training/metrics.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

// Keeps the lines of steps up to first_step: a run that goes on from a checkpoint repeats the steps after it.
void drop_later_lines(const std::filesystem::path& path, int64_t first_step) {
  if (!std::filesystem::exists(path)) return;
  std::istringstream lines(read_file(path));
  std::string kept, line;
  while (std::getline(lines, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_discarded() && json.value("step", int64_t{0}) <= first_step) kept += line + "\n";
  }
  write_file(path, kept);
}

// JSON has no NaN: null, so that a reader sees that there was no number.
nlohmann::json number(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(); }

}  // namespace

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

Metrics::Metrics(const std::filesystem::path& run, int64_t first_step, int64_t steps, int log_every)
    : path_(run / "metrics.jsonl"),
      tensorboard_(std::in_place, run / "tensorboard", first_step),
      steps_(steps),
      log_every_(log_every) {
  drop_later_lines(path_, first_step);
  file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (file_ < 0) fail(ErrorKind::io, "cannot write {}: {}", path_.string(), std::strerror(errno));
}

Metrics::~Metrics() {
  if (file_ >= 0) close(file_);
}

// A file whose folder was removed begins anew, when that can be.
void Metrics::reopen_if_removed() {
  struct stat status;
  if (fstat(file_, &status) != 0 || status.st_nlink > 0) return;
  std::error_code ignored;
  std::filesystem::create_directories(path_.parent_path(), ignored);
  const int again = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (again < 0) return;
  close(std::exchange(file_, again));
  spdlog::warn("{} was removed, with the lines up to here; it begins anew", path_.string());
}

void Metrics::write_line(const std::string& line) {
  reopen_if_removed();
  unwritten_ += line + "\n";
  int error = 0;
  while (!unwritten_.empty() && error == 0) {
    const ssize_t written = write(file_, unwritten_.data(), unwritten_.size());
    if (written > 0)
      unwritten_.erase(0, static_cast<size_t>(written));
    else if (errno != EINTR)
      error = errno;
  }
  if (error == 0 && fdatasync(file_) != 0) error = errno;
  if (error == 0) return failure_.clear();
  if (failure_.empty())
    spdlog::warn("cannot write {}: {}; lines are kept until they can be", path_.string(), std::strerror(error));
  failure_ = std::strerror(error);
}

void Metrics::write_event(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  if (!tensorboard_) return;
  try {
    tensorboard_->add(step, values);
  } catch (const Error& error) {  // after half a record TensorBoard reads no more of the file
    spdlog::warn("{}; no more events of this run", error.what());
    tensorboard_.reset();
  }
}

void Metrics::finish() {
  if (!unwritten_.empty()) fail(ErrorKind::io, "cannot write {}: {}", path_.string(), failure_);
}

void Metrics::step(const StepMetrics& m) {
  const StepResult& r = m.result;
  const std::vector<std::pair<std::string, double>> values = {
      {"loss", r.loss},
      {"contrastive_loss", r.contrastive},
      {"token_loss", r.token},
      {"tau", m.tau},
      {"gradient_norm", m.gradient_norm},
      {"learning_rate", m.learning_rate},
      {"positive_similarity", r.positive_similarity},
      {"negative_similarity", r.negative_similarity},
      {"notes_per_second", static_cast<double>(r.notes) / m.seconds},
      {"tokens_per_second", static_cast<double>(r.tokens) / m.seconds},
      {"gflops", r.flops.total() / m.seconds / 1e9},
      {"memory_mib", static_cast<double>(peak_memory_bytes() >> 20)},
  };
  nlohmann::ordered_json line = {{"step", m.step}};
  for (const auto& [name, value] : values) line[name] = number(value);
  line["notes"] = r.notes;
  line["tokens"] = r.tokens;
  line["tokens_without_sharing"] = r.unshared_tokens;
  line["labels"] = r.labels;
  line["seconds"] = number(m.seconds);
  line["skipped_steps"] = m.skipped;
  write_line(line.dump());
  write_event(m.step, values);
  show(m);
}

void Metrics::show(const StepMetrics& m) {
  seconds_ += m.seconds;
  notes_ += m.result.notes;
  tokens_ += m.result.tokens;
  ++shown_steps_;
  if (m.step % log_every_ != 0 && m.step != steps_ && m.step != 1) return;
  const StepResult& r = m.result;
  spdlog::info(
      "step {:>5}/{}  loss {:.4f}  cl {:.4f}  gen {:.3f}  tau {:.3f}  grad {:.3f}  pos {:.3f}  neg {:+.3f}  {:>5.0f} "
      "notes/s  {:>7} tokens/s "
      " {} MiB  {} left{}",
      m.step, steps_, r.loss, r.contrastive, r.token, m.tau, m.gradient_norm, r.positive_similarity,
      r.negative_similarity, notes_ / seconds_, format_count(std::llround(tokens_ / seconds_)),
      peak_memory_bytes() >> 20, format_seconds(seconds_ / shown_steps_ * (steps_ - m.step)),
      m.skipped ? fmt::format("  {} steps skipped", m.skipped) : "");
  seconds_ = 0;
  notes_ = tokens_ = shown_steps_ = 0;
}

void Metrics::evaluation(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  nlohmann::ordered_json line = {{"step", step}};
  std::string text;
  for (const auto& [name, value] : values) {
    line[name] = number(value);
    text += fmt::format("  {} {:.4f}", name, value);
  }
  write_line(line.dump());
  write_event(step, values);
  spdlog::info("step {:>5}/{}  evaluation on a sample:{}", step, steps_, text);
}

}  // namespace notellm

#include "training/checkpoint_writer.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "runtime/files.h"
#include "runtime/log.h"
#include "training/checkpoint_folder.h"
#include "training/hugging_face.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr int64_t checksum_digits = 32;

// Of SentencePiece models, which all have one, what every prompt begins with; of others not known here.
std::optional<int32_t> bos_of(const PromptTokens& prompt, const TokenizerFiles& tokenizer) {
  if (!tokenizer.contains(tokenizer_file_names[0])) return std::nullopt;
  return prompt.category_instruction.empty() ? 1 : prompt.category_instruction.front();
}

}  // namespace

CheckpointWriter::CheckpointWriter(const RunConfig& config, const NoteTable& notes, const TrainingState& state,
                                   int64_t file_bytes)
    : config_(config),
      state_(state),
      plan_(state.layout, file_bytes),
      tokenizer_(read_tokenizer_files(config.data.shards)),
      hugging_face_config_(hugging_face_config(config.model, state.layout.vocabulary(),
                                               bos_of(notes.prompt, tokenizer_), notes.prompt.eos, ExportType::f32)) {
  manifest_.vocabulary = state.layout.vocabulary();
  manifest_.tokens_in_use = notes.prompt.vocabulary;
  manifest_.tokenizer_digest = notes.tokenizer_digest;
  manifest_.trained_on = notes.shards;
  state.shards.for_own_runs(state.layout, [&](const ShardMap::Run& run) { runs_.push_back(run); });
  snapshot_ = Buffer(memory_bytes(state.layout, state.shards),
                     config.device == Device::cuda ? Memory::pinned : Memory::host, "the snapshot for checkpoints");
  std::memset(snapshot_.data(), 0, static_cast<size_t>(snapshot_.bytes()));  // the system's work, before the first step
}

int64_t CheckpointWriter::memory_bytes(const ParameterLayout& layout, const ShardMap& shards) {
  int64_t elements = 0;
  shards.for_own_runs(layout, [&](const ShardMap::Run& run) { elements += run.count; });
  return 3 * elements * size_of(DType::f32);
}

void CheckpointWriter::begin(Stream& stream, const TrainingPosition& position) {
  wait_for_end();
  tolerate();
  const Stopwatch watch;
  const Tensor all = snapshot_.tensor(DType::f32, {snapshot_.bytes() / size_of(DType::f32)});
  const Optimizer& optimizer = state_.optimizer;
  int64_t to = 0;
  for (const Tensor& from : {optimizer.weights(), optimizer.first_moment(), optimizer.second_moment()})
    for (const ShardMap::Run& run : runs_) {
      copy(stream, from.slice(run.at, run.at + run.count), all.slice(to, to + run.count));
      to += run.count;
    }
  stream.synchronize();
  manifest_.position = position;
  final_ = checkpoint_path(config_.train.run, position.step);
  waited_seconds_ = watch.seconds();
  since_begin_ = watch;
  start(Phase::create);
}

CheckpointWriter::Standing CheckpointWriter::standing() {
  if (work_.valid()) {
    if (work_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return Standing::working;
    try {
      work_.get();
    } catch (const std::exception& error) {
      failure_ = error.what();
    }
  }
  return failure_.empty() ? Standing::done : Standing::failed;
}

void CheckpointWriter::proceed(std::span<const Standing> of_ranks) {
  advance(of_ranks);
  tolerate();
}

void CheckpointWriter::finish() {
  wait_for_end();
  if (!reason_.empty()) throw Error(ErrorKind::io, std::exchange(reason_, {}));
}

void CheckpointWriter::wait_for_end() {
  Stopwatch watch;
  Communicator& ranks = state_.mesh.world;
  while (phase_ != Phase::none) {
    if (work_.valid()) work_.wait();
    std::vector<Standing> standings;
    for (const int64_t s : ranks.all_gather("checkpoint", static_cast<int64_t>(standing())))
      standings.push_back(static_cast<Standing>(s));
    waited_seconds_ += watch.lap();
    advance(standings);
  }
}

void CheckpointWriter::tolerate() {
  if (reason_.empty()) return;
  const std::string reason = std::exchange(reason_, {});
  const int most = config_.train.most_failed_checkpoints;
  if (failed_in_a_row_ >= most)
    fail(ErrorKind::io, "{} checkpoints in a row could not be written, the last one because: {}", failed_in_a_row_,
         reason);
  if (state_.mesh.world.rank() == 0)
    spdlog::warn("the checkpoint after step {} was not written: {}. Training goes on; it ends when {} in a row fail",
                 manifest_.position.step, reason, most);
}

void CheckpointWriter::advance(std::span<const Standing> of_ranks) {
  if (phase_ == Phase::none || std::ranges::find(of_ranks, Standing::working) != of_ranks.end()) return;
  std::ranges::find(of_ranks, Standing::failed) == of_ranks.end() ? end_phase() : give_up();
}

void CheckpointWriter::end_phase() {
  switch (phase_) {
    case Phase::none:
      break;
    case Phase::create:
      return start(Phase::write);
    case Phase::write:
      return start(Phase::check);
    case Phase::check:
      gather_checksums();
      return start(Phase::publish);
    case Phase::publish:
      phase_ = Phase::none;
      failed_in_a_row_ = 0;
      spdlog::info("saved {} in {:.2f} s, of which training waited {:.3f} s", final_.string(), since_begin_.seconds(),
                   waited_seconds_);
  }
}

void CheckpointWriter::give_up() {
  reason_ = state_.mesh.world.first_text("checkpoint's failure", std::exchange(failure_, {}));
  phase_ = Phase::none;
  ++failed_in_a_row_;
  std::error_code ignored;
  if (state_.mesh.world.rank() == 0) fs::remove_all(partial_path(final_), ignored);
}

void CheckpointWriter::start(Phase phase) {
  phase_ = phase;
  const bool first = state_.mesh.world.rank() == 0;
  const auto begin = [this](auto work) { work_ = std::async(std::launch::async, work); };
  if (phase == Phase::create && first) begin([this] { create(); });
  if (phase == Phase::write) begin([this] { write(); });
  if (phase == Phase::check) begin([this] { check(); });
  if (phase == Phase::publish && first) begin([this] { publish(); });
}

void CheckpointWriter::create() {
  make_partial(final_);
  const fs::path folder = partial_path(final_);
  for (const CheckpointPlan::File& file : plan_.files()) create_file(folder / file.name, file.header, file.bytes);
  manifest_.files.clear();
  const auto small_file = [&](const std::string& name, const std::string& content) {
    write_file(folder / name, content);
    manifest_.files.push_back({name, static_cast<int64_t>(content.size()), checksum(content)});
  };
  small_file(index_name, plan_.index());
  small_file(hugging_face_config_name, hugging_face_config_);
  small_file(config_file_name, print_run_config(config_));
  for (const auto& [name, bytes] : tokenizer_) small_file(name, bytes);
}

// A part of the columns of a matrix is a short write a row; the system's page cache joins those of a host's ranks.
void CheckpointWriter::write() const {
  std::vector<std::optional<FileInPlace>> files(plan_.files().size());
  const char* from = static_cast<const char*>(snapshot_.data());
  for (const std::string prefix : {"", first_moment_prefix, second_moment_prefix})
    for (const ShardMap::Run& run : runs_) {
      const CheckpointPlan::Place place = plan_.at(prefix + run.parameter.name);
      auto& file = files[place.file];
      if (!file) file.emplace(partial_path(final_) / plan_.files()[place.file].name);
      for_row_runs(run.parameter, run.first, run.count, [&](int64_t whole, int64_t, int64_t elements) {
        const auto bytes = static_cast<size_t>(elements * size_of(DType::f32));
        file->write(place.offset + whole * size_of(DType::f32), {from, bytes});
        from += bytes;
      });
    }
  for (auto& file : files)
    if (file) file->sync();
}

void CheckpointWriter::check() {
  const int rank = state_.mesh.world.rank();
  sums_.clear();
  for (size_t i = first_file_of(rank); i < first_file_of(rank + 1); ++i)
    sums_.push_back(checksum_file(partial_path(final_) / plan_.files()[i].name));
}

void CheckpointWriter::gather_checksums() {
  Communicator& ranks = state_.mesh.world;
  constexpr int64_t words = checksum_digits / size_of(DType::i64);
  std::string mine, all(plan_.files().size() * checksum_digits, ' ');
  for (const std::string& sum : sums_) mine += sum;
  std::vector<int64_t> rows_of;
  for (int r = 0; r < ranks.size(); ++r)
    rows_of.push_back(static_cast<int64_t>(first_file_of(r + 1) - first_file_of(r)));
  ranks.all_gather_rows("checkpoint's checksums", Tensor(mine.data(), DType::i64, {std::ssize(sums_), words}), rows_of,
                        Tensor(all.data(), DType::i64, {std::ssize(plan_.files()), words}));
  if (ranks.rank() != 0) return;
  for (size_t i = 0; i < plan_.files().size(); ++i)
    manifest_.files.push_back(
        {plan_.files()[i].name, plan_.files()[i].bytes, all.substr(i * checksum_digits, checksum_digits)});
}

void CheckpointWriter::publish() const {
  write_manifest(partial_path(final_), manifest_);
  notellm::publish(final_);
  try {
    remove_old(final_, config_.train.keep_checkpoints, config_.train.keep_every);
  } catch (const std::exception& error) {  // the new one is whole all the same
    spdlog::warn("an old checkpoint could not be removed: {}", error.what());
  }
}

}  // namespace notellm

#include "training/checkpoint.h"

#include "runtime/files.h"
#include "training/checkpoint_plan.h"
#include "training/tensor_files.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// Elements [first, first + count) of the part p of a whole tensor, to `to`.
void copy_run(Stream& stream, const Parameter& p, Tensor whole, int64_t first, int64_t count, Tensor to) {
  const Tensor flat = whole.reshape({whole.size()});
  for_row_runs(p, first, count, [&](int64_t from, int64_t at, int64_t elements) {
    copy(stream, flat.slice(from, from + elements), to.slice(at, at + elements));
  });
}

// What is wrong with a file; empty: nothing.
std::string damage(const fs::path& checkpoint, const FileRecord& file) {
  const fs::path path = file_inside(checkpoint, file.name);
  if (!fs::exists(path)) return fmt::format("{} is missing; {}", path.string(), checkpoint_before(checkpoint));
  if (static_cast<int64_t>(fs::file_size(path)) == file.bytes && checksum_file(path) == file.checksum) return "";
  return fmt::format("{} is damaged: size or checksum differs from the manifest; {}", path.string(),
                     checkpoint_before(checkpoint));
}

}  // namespace

CheckpointInfo verify_checkpoint(const fs::path& checkpoint, Communicator& ranks) {
  std::string wrong;
  CheckpointInfo info{.path = checkpoint, .manifest = {}, .config = {}};
  try {
    info.manifest = read_manifest(checkpoint);
    for (size_t i = ranks.rank(); i < info.manifest.files.size() && wrong.empty(); i += ranks.size())
      wrong = damage(checkpoint, info.manifest.files[i]);
  } catch (const std::exception& error) {  // of the file system too: the others wait for this rank's word
    wrong = error.what();
  }
  wrong = ranks.first_text("checkpoint's files", wrong);
  if (!wrong.empty()) throw Error(ErrorKind::checkpoint, wrong);
  info.config = read_saved_config(checkpoint / config_file_name);
  return info;
}

CheckpointInfo verify_checkpoint(const fs::path& checkpoint) {
  Communicator self = Communicator::self();
  return verify_checkpoint(checkpoint, self);
}

void require_same_tokenizer(const CheckpointInfo& checkpoint, const NoteTable& notes, const std::string& shards) {
  if (checkpoint.manifest.tokenizer_digest == notes.tokenizer_digest &&
      checkpoint.manifest.vocabulary == padded_vocabulary(notes.prompt.vocabulary))
    return;
  fail(ErrorKind::checkpoint,
       "{0}: {1} has shards of another tokenizer: take those that it was trained on ({2}), or prepare new ones with "
       "the tokenizer in {0} as data.tokenizer.model",
       checkpoint.path.string(), shards, checkpoint.config.data.shards);
}

void load_weights(const fs::path& folder, const ParameterLayout& layout, bool with_note_head, Tensor flat,
                  Device device) {
  TensorFiles files;
  for (const fs::path& path : model_files(folder)) files.open(path);
  if (with_note_head) files.open(folder / note_head_name);
  Stream stream(device);
  for (const Parameter& p : layout.all())
    if (with_note_head || !p.name.starts_with("note_head."))
      copy_run(stream, p, files.whole(p.name, p), 0, p.size(), flat.slice(p.offset, p.offset + p.size()));
  stream.synchronize();
}

void load_master_weights(const CheckpointInfo& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                         Optimizer& optimizer) {
  TensorFiles files;
  for (const fs::path& path : model_files(checkpoint.path)) files.open(path);
  files.open(checkpoint.path / note_head_name);
  Stream stream(optimizer.device());
  shards.for_runs(layout, [&](const ShardMap::Run& run) {
    copy_run(stream, run.parameter, files.whole(run.parameter.name, run.parameter), run.first, run.count,
             optimizer.weights().slice(run.at, run.at + run.count));
  });
  stream.synchronize();
}

void load_state(const CheckpointInfo& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                Optimizer& optimizer) {
  TensorFiles files;
  for (const FileRecord& file : checkpoint.manifest.files)
    if (file.name.ends_with(".safetensors")) files.open(checkpoint.path / file.name);
  Stream stream(optimizer.device());
  shards.for_runs(layout, [&](const ShardMap::Run& run) {
    const Parameter& p = run.parameter;
    const auto load = [&](const std::string& name, Tensor to) {
      copy_run(stream, p, files.whole(name, p), run.first, run.count, to.slice(run.at, run.at + run.count));
    };
    load(p.name, optimizer.weights());
    load(first_moment_prefix + p.name, optimizer.first_moment());
    load(second_moment_prefix + p.name, optimizer.second_moment());
  });
  stream.synchronize();
}

}  // namespace notellm

#include "training/checkpoint.h"

#include <algorithm>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/files.h"
#include "runtime/safetensors.h"
#include "training/checkpoint_plan.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// The tensors of several files.
class TensorFiles {
 public:
  void open(const fs::path& path) {
    const SafetensorsFile& file = files_.emplace_back(path);
    for (const NamedTensor& t : file.tensors())
      if (!tensors_.insert({t.name, {path, t.tensor}}).second)
        fail(ErrorKind::checkpoint, "{}: tensor {} is in {} too", path.string(), t.name,
             tensors_.at(t.name).path.string());
  }

  // The whole tensor of that name, checked to be as large as the whole of `p`.
  Tensor whole(const std::string& name, const Parameter& p) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail_to_find(name);
    const Tensor& t = found->second.tensor;
    if (t.dtype != DType::f32 || t.rows() != p.all_rows || t.cols() != std::max<int64_t>(1, p.all_cols))
      fail(ErrorKind::checkpoint, "{}: tensor {} is {}, the model wants {}", found->second.path.string(), name,
           describe(t),
           p.all_cols ? fmt::format("f32 [{}, {}]", p.all_rows, p.all_cols) : fmt::format("f32 [{}]", p.all_rows));
    return t;
  }

 private:
  [[noreturn]] void fail_to_find(const std::string& name) const {
    if (files_.size() == 1) files_.front().at(name);  // says what is there
    fail(ErrorKind::checkpoint, "{}: none of the {} safetensors files there has tensor {}; of another model?",
         tensors_.empty() ? "" : tensors_.begin()->second.path.parent_path().string(), files_.size(), name);
  }

  struct Found {
    fs::path path;
    Tensor tensor;
  };
  std::deque<SafetensorsFile> files_;
  std::map<std::string, Found> tensors_;
};

// Elements [first, first + count) of the part p of a whole tensor, to `to`.
void copy_run(Stream& stream, const Parameter& p, Tensor whole, int64_t first, int64_t count, Tensor to) {
  const Tensor flat = whole.reshape({whole.size()});
  for_row_runs(p, first, count, [&](int64_t from, int64_t at, int64_t elements) {
    copy(stream, flat.slice(from, from + elements), to.slice(at, at + elements));
  });
}

std::set<std::string> files_of_index(const fs::path& path) {
  const auto json = nlohmann::json::parse(read_file(path), nullptr, false);
  std::set<std::string> names;
  if (json.is_object() && json.contains("weight_map") && json["weight_map"].is_object())
    for (const auto& [tensor, file] : json["weight_map"].items())
      if (file.is_string()) names.insert(file.get<std::string>());
  if (names.empty()) fail(ErrorKind::checkpoint, "{}: not an index of safetensors files (weight_map)", path.string());
  return names;
}

std::vector<fs::path> model_files(const fs::path& folder) {
  std::vector<fs::path> paths;
  if (fs::exists(folder / index_name))
    for (const std::string& name : files_of_index(folder / index_name)) paths.push_back(folder / name);
  else if (const char* name = "model-00001-of-00001.safetensors"; fs::exists(folder / name))
    paths.push_back(folder / name);
  else
    paths.push_back(folder / "model.safetensors");
  return paths;
}

// What is wrong with a file; empty: nothing.
std::string damage(const fs::path& checkpoint, const FileRecord& file) {
  const fs::path path = checkpoint / file.name;
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
  info.config = read_run_config((checkpoint / "config.yaml").string(), {});
  return info;
}

CheckpointInfo verify_checkpoint(const fs::path& checkpoint) {
  Communicator self = Communicator::self();
  return verify_checkpoint(checkpoint, self);
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

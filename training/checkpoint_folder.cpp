#include "training/checkpoint_folder.h"

#include <algorithm>
#include <charconv>

#include "runtime/error.h"
#include "runtime/files.h"
#include "training/manifest.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr const char* folder_name = "checkpoints";
constexpr std::string_view step_prefix = "step-";
constexpr const char* latest_name = "latest";
constexpr const char* partial_suffix = ".partial";
constexpr const char* removed_suffix = ".removed";

std::string checkpoint_name(int64_t step) { return fmt::format("{}{:08}", step_prefix, step); }

// Of a folder that has a checkpoint's name, as checkpoint_path writes it: another beside them is not the run's.
std::optional<int64_t> step_of(const fs::path& checkpoint) {
  const std::string name = checkpoint.filename().string();
  if (!name.starts_with(step_prefix)) return std::nullopt;
  int64_t step = -1;
  std::from_chars(name.data() + step_prefix.size(), name.data() + name.size(), step);
  return step >= 0 && checkpoint_name(step) == name ? std::optional(step) : std::nullopt;
}

// A folder never stands half-removed under a checkpoint's name.
void remove_checkpoint(const fs::path& checkpoint) {
  const fs::path removed = checkpoint.string() + removed_suffix;
  fs::rename(checkpoint, removed);
  fs::remove_all(removed);
}

}  // namespace

fs::path checkpoint_path(const fs::path& run, int64_t step) { return run / folder_name / checkpoint_name(step); }

fs::path partial_path(const fs::path& checkpoint) { return checkpoint.string() + partial_suffix; }

std::vector<fs::path> checkpoints_of(const fs::path& folder) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder))
    if (step_of(entry.path()) && fs::exists(entry.path() / manifest_name)) found.push_back(entry.path());
  std::ranges::sort(found, {}, step_of);
  return found;
}

std::string checkpoint_before(const fs::path& checkpoint) {
  const std::vector<fs::path> all = checkpoints_of(checkpoint.parent_path());
  const auto place = std::ranges::lower_bound(all, step_of(checkpoint), {}, step_of);
  return place == all.begin() ? "there is no checkpoint before it"
                              : fmt::format("the one before it is {0}: --resume {0}", std::prev(place)->string());
}

std::optional<fs::path> latest_checkpoint(const fs::path& run) {
  const fs::path pointer = run / folder_name / latest_name;
  const std::vector<fs::path> all = checkpoints_of(run / folder_name);
  if (!fs::exists(pointer)) return all.empty() ? std::nullopt : std::optional(all.back());
  std::string name = read_file(pointer);
  name.erase(name.find_last_not_of(" \n") + 1);
  const fs::path checkpoint = run / folder_name / name;
  if (!name.empty() && fs::exists(checkpoint / manifest_name)) return checkpoint;
  fail(ErrorKind::checkpoint, "{} names '{}', which is not a complete checkpoint; {}", pointer.string(), name,
       all.empty() ? "there is none" : fmt::format("the newest one is {0}: --resume {0}", all.back().string()));
}

fs::path find_checkpoint(const fs::path& path) {
  if (fs::exists(path / manifest_name)) return path.has_filename() ? path : path.parent_path();
  if (const auto latest = latest_checkpoint(path)) return *latest;
  fail(ErrorKind::io, "{} is neither a checkpoint nor a run with checkpoints; 'notellm train' writes them",
       path.string());
}

void make_partial(const fs::path& checkpoint) {
  const fs::path folder = checkpoint.parent_path();
  fs::create_directories(folder);
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == partial_suffix || entry.path().extension() == removed_suffix)
      left.push_back(entry.path());
  for (const fs::path& path : left) fs::remove_all(path);
  fs::create_directory(partial_path(checkpoint));
}

void publish(const fs::path& checkpoint) {
  sync_directory(partial_path(checkpoint));
  replace_folder(partial_path(checkpoint), checkpoint);
  write_file(checkpoint.parent_path() / latest_name, checkpoint.filename().string() + "\n");
}

void remove_old(const fs::path& checkpoint, int keep, int keep_every) {
  const std::vector<fs::path> all = checkpoints_of(checkpoint.parent_path());
  for (size_t i = 0; i + keep < all.size(); ++i)
    if (all[i] != checkpoint && (keep_every == 0 || *step_of(all[i]) % keep_every != 0)) remove_checkpoint(all[i]);
}

}  // namespace notellm

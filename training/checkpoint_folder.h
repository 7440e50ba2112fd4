// RUN/checkpoints: which checkpoints are there, which one is the latest, how one appears and how one goes.
//
//   step-00000400/           a whole checkpoint: it has a manifest, which is written last. A folder with another name
//                            than this is nobody's, as a copy that is to be kept, and stays
//   step-00000400.partial/   one that is being written, or was by a run that was killed
//   step-00000400.removed/   one that is being removed, likewise
//   latest                   a text file with a name; moves last, and never names what is not there. Where it is
//   missing
//                            (no room for it, a copied folder), the newest checkpoint is the latest
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace notellm {

inline constexpr const char* config_file_name = "config.yaml";

// Where a run's checkpoint of a step stands, and where it is while it is written.
std::filesystem::path checkpoint_path(const std::filesystem::path& run, int64_t step);
std::filesystem::path partial_path(const std::filesystem::path& checkpoint);

// The whole checkpoints of RUN/checkpoints, oldest first.
std::vector<std::filesystem::path> checkpoints_of(const std::filesystem::path& folder);
// The latest checkpoint of a run, if there is one. Throws Error(checkpoint): `latest` names something else.
std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& run);
// A run's folder (its latest checkpoint) or a checkpoint's folder → the checkpoint's. Throws Error(io): neither.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
// For messages: the one before a checkpoint that cannot be used, or that there is none.
std::string checkpoint_before(const std::filesystem::path& checkpoint);

// By one rank each. Throw Error(io) or std::filesystem::filesystem_error.
// Makes an empty folder for a checkpoint that is to be written, and clears what killed runs left.
void make_partial(const std::filesystem::path& checkpoint);
// partial_path(checkpoint), complete and synced, becomes the checkpoint, instead of one that may be there (of a run
// that went on from an older one), and the latest.
void publish(const std::filesystem::path& checkpoint);
// Removes the checkpoints of a run but the `keep` newest, `checkpoint`, and, unless it is 0, every keep_every-th step.
void remove_old(const std::filesystem::path& checkpoint, int keep, int keep_every);

}  // namespace notellm

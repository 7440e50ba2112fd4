// manifest.json: what a checkpoint says of itself, and size and checksum of its files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace notellm {

inline constexpr const char* manifest_name = "manifest.json";

struct TrainingPosition {
  int64_t step = 0;     // steps done; the next one to do
  int64_t updates = 0;  // steps that changed the weights
  int64_t skipped = 0;
};

struct FileRecord {
  std::string name;
  int64_t bytes;
  std::string checksum;  // checksum_file's
};

struct Manifest {
  TrainingPosition position;
  int64_t vocabulary = 0;  // rows of the embedding
  int64_t tokens_in_use = 0;
  std::string tokenizer_digest;
  std::string trained_on;         // id of the shards; empty: imported, or of a program that did not write it
  std::vector<FileRecord> files;  // all but itself, by name
};

// Whether the checkpoint has an optimizer's moments: one that 'notellm import' wrote has weights alone.
bool has_moments(const Manifest& manifest);

void write_manifest(const std::filesystem::path& checkpoint, const Manifest& manifest);
// Throws Error(checkpoint), with the checkpoint before this one: missing, damaged, of a format that is not known.
Manifest read_manifest(const std::filesystem::path& checkpoint);

}  // namespace notellm

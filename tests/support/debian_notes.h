// The frozen real notes of the reference material, unpacked for a test.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "data_pipeline/notes.h"
#include "tests/support/shared.h"
#include "tests/support/temp_dir.h"

namespace notellm::test {

inline constexpr const char* debian_notes_file = "data/debian-bookworm/notes.jsonl.xz";

// Every `stride`-th of the notes, titled "name: title". Throws when they cannot be unpacked (xz is missing).
inline std::vector<Note> debian_notes(int stride) {
  const TempDir folder;
  const std::filesystem::path file = folder / "notes.jsonl";
  const std::string command = "xz -dc '" + shared_path(debian_notes_file).string() + "' | awk 'NR % " +
                              std::to_string(stride) + " == 1' > '" + file.string() + "'";
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  NoteReader reader(file, "{name}: {title}");
  std::vector<Note> all;
  for (std::vector<Note> batch; reader.read(batch);) all.insert(all.end(), batch.begin(), batch.end());
  return all;
}

}  // namespace notellm::test

// Files of the reference material are stored packed.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "tests/support/temp_dir.h"

namespace notellm::test {

// Unpacks NAME.xz into the folder and returns the path of NAME. Throws when it cannot (xz is missing).
inline std::filesystem::path unpack(const std::filesystem::path& packed, const TempDir& folder) {
  const std::filesystem::path file = folder / packed.stem().string();
  const std::string command = "xz -dc '" + packed.string() + "' > '" + file.string() + "'";
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  return file;
}

}  // namespace notellm::test

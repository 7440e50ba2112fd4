// Where the reference material (golden numbers, real data, a real tiny model) lies: the folder shared/ beside the
// checkout, or $NOTELLM_SHARED. Tests that need it skip, and say so, where it is absent.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace notellm::test {

inline std::filesystem::path shared_path(const std::string& relative) {
  const char* root = std::getenv("NOTELLM_SHARED");
  return (root ? std::filesystem::path(root) : std::filesystem::path(NOTELLM_SOURCE_DIR).parent_path() / "shared") /
         relative;
}

}  // namespace notellm::test

#define NOTELLM_NEEDS_SHARED(relative)                                  \
  if (!std::filesystem::exists(::notellm::test::shared_path(relative))) \
  GTEST_SKIP() << "needs the reference material: " << ::notellm::test::shared_path(relative)

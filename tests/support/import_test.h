// A model of the hub in one folder, and the checkpoint that import makes of it in another.
#pragma once

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "runtime/files.h"
#include "tests/support/hub_model.h"
#include "tests/support/temp_dir.h"
#include "training/import.h"

namespace notellm::test {

class ImportTest : public testing::Test {
 protected:
  ImportTest() { spdlog::set_level(spdlog::level::off); }
  void import(const std::vector<std::string>& overrides = {"model.note_dim=5"}) {
    import_model(hub_, checkpoint_, "", overrides);
  }

  TempDir folder_;
  std::filesystem::path hub_ = folder_ / "hub", checkpoint_ = folder_ / "checkpoint";
};

}  // namespace notellm::test

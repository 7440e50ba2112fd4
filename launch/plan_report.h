// What `notellm plan` prints and writes.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "training/plan_search.h"

namespace notellm {

// One question: a run on so many ranks, of a cluster or of CPUs.
struct PlanReport {
  RunConfig config;
  std::string notes_from;  // the shards' folder, or how notes were made up
  NoteStatistics notes;
  int ranks = 1;
  std::optional<ClusterConfig> cluster;
  std::string cluster_file;

  std::vector<std::string> problems;  // why the configuration's own mesh cannot be
  std::optional<Plan> plan;           // of it, unless there are problems
  std::optional<Prediction> prediction;
  std::optional<PlanSearch> search;
  int shown = 10;  // rows of the search

  std::string text() const;
  nlohmann::ordered_json json() const;
};

}  // namespace notellm

// The result of `evaluate`: methods × slices × metrics, as a table for people and as JSON.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "evaluation/generation_quality.h"
#include "evaluation/ranking.h"
#include "evaluation/slices.h"

namespace notellm {

// A method's ranks of the same questions.
struct MethodRanks {
  std::string name;
  std::vector<Rank> ranks;
};

// One table a slice: a line a method, columns R@10, R@100, R@1k, R@10k (per cent) and MRR. Slices without a pair are
// named as such.
std::string format_report(std::span<const MethodRanks> methods, std::span<const Slice> slices, int64_t pool);

// {"pool": …, "slices": {name: {"pairs": …, "methods": {name: {"recall_10": …, …, "mrr": …}}}}}, shares of 1;
// where generated labels were scored, also "generation" (docs/data_formats.md).
std::string report_json(std::span<const MethodRanks> methods, std::span<const Slice> slices, int64_t pool,
                        std::span<const GenerationQuality> generation = {});

}  // namespace notellm

#include "evaluation/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "evaluation/recall.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

int64_t pairs_of(const Slice& slice) {
  return std::count_if(slice.mask.begin(), slice.mask.end(), [](uint8_t m) { return m != 0; });
}

nlohmann::ordered_json quality_json(const GenerationQuality& quality) {
  nlohmann::ordered_json categories = nlohmann::ordered_json::object(), hashtags = categories;
  for (const LabelScores& m : quality.methods) {
    if (quality.category_notes > 0)
      categories[m.method] = {{"accuracy", m.category.accuracy}, {"illusory", m.category.illusory}};
    if (m.of_hashtags)
      hashtags[m.method] = {
          {"bleu_4", m.bleu},           {"rouge_1", m.rouge.rouge_1},        {"rouge_2", m.rouge.rouge_2},
          {"rouge_l", m.rouge.rouge_l}, {"set_precision", m.sets.precision}, {"set_recall", m.sets.recall},
          {"set_f1", m.sets.f1}};
  }
  return {{"category", {{"notes", quality.category_notes}, {"methods", categories}}},
          {"hashtags", {{"notes", quality.hashtag_notes}, {"methods", hashtags}}}};
}

}  // namespace

std::string format_report(std::span<const MethodRanks> methods, std::span<const Slice> slices, int64_t pool) {
  size_t width = 0;
  for (const MethodRanks& method : methods) width = std::max(width, method.name.size());
  std::string text;
  for (const Slice& slice : slices) {
    const int64_t pairs = pairs_of(slice);
    text += fmt::format("\n{}: {} test pairs, pool of {} notes\n", slice.name, format_count(pairs), format_count(pool));
    if (pairs == 0) continue;
    text += fmt::format("  {:<{}}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}\n", "", width, "R@10", "R@100", "R@1k", "R@10k",
                        "MRR");
    for (const MethodRanks& method : methods) {
      const RankingMetrics m = summarize(method.ranks, slice.mask);
      text += fmt::format("  {:<{}}", method.name, width);
      for (double recall : m.recall) text += fmt::format("  {:>6.1f}", 100 * recall);
      text += fmt::format("  {:>6.4f}\n", m.mrr);
    }
  }
  return text;
}

std::string report_json(std::span<const MethodRanks> methods, std::span<const Slice> slices, int64_t pool,
                        std::span<const GenerationQuality> generation) {
  nlohmann::ordered_json all;
  for (const Slice& slice : slices) {
    nlohmann::ordered_json of_slice;
    for (const MethodRanks& method : methods) {
      const RankingMetrics m = summarize(method.ranks, slice.mask);
      nlohmann::ordered_json values;
      if (m.count > 0)
        for (const auto& [name, value] : named_values(m)) values[name] = value;
      of_slice[method.name] = values;
    }
    all[slice.name] = {{"pairs", pairs_of(slice)}, {"methods", of_slice}};
  }
  nlohmann::ordered_json report = {{"pool", pool}, {"slices", all}};
  for (const GenerationQuality& quality : generation) report["generation"][quality.slice] = quality_json(quality);
  return report.dump(2) + "\n";
}

}  // namespace notellm

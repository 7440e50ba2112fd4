#include "evaluation/generation_quality.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "evaluation/tfidf.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

std::vector<int32_t> every_kth(const std::vector<int32_t>& rows, int64_t most) {
  const auto all = std::ssize(rows), count = std::min<int64_t>(all, most);
  std::vector<int32_t> sample;
  for (int64_t i = 0; i < count; ++i) sample.push_back(rows[i * all / count]);
  return sample;
}

// Texts from the most frequent one on.
std::vector<std::string> by_frequency(const std::map<std::string, int64_t>& counts) {
  std::vector<std::pair<int64_t, std::string>> ranked;
  for (const auto& [text, count] : counts) ranked.emplace_back(-count, text);
  std::ranges::sort(ranked);
  std::vector<std::string> texts;
  for (auto& [count, text] : ranked) texts.push_back(std::move(text));
  return texts;
}

// For each asked note the nearest known one that `has` the label; −1: none has.
template <class Has>
std::vector<int32_t> nearest(const TfIdf& texts, const std::vector<int32_t>& rows, const std::vector<int32_t>& place,
                             const std::vector<int32_t>& asked, const AskedLabels& labels, const Has& has) {
  std::vector<int32_t> found(asked.size(), -1);
#pragma omp parallel
  {
    std::vector<float> scores(static_cast<size_t>(texts.size()));
#pragma omp for schedule(dynamic, 16)
    for (size_t i = 0; i < asked.size(); ++i) {
      texts.scores(place[asked[i]], scores);
      float best = -1;
      for (size_t x = 0; x < rows.size(); ++x)
        if (labels.known[rows[x]] && scores[x] > best && has(rows[x])) {
          best = scores[x];
          found[i] = rows[x];
        }
    }
  }
  return found;
}

std::vector<std::string> joined(const OutputReader& reader, const std::vector<std::vector<std::string>>& hashtags) {
  std::vector<std::string> texts;
  for (const auto& tags : hashtags) texts.push_back(joined_hashtags(reader.preset(), tags));
  return texts;
}

}  // namespace

std::vector<AskedLabels> ask_labels(const NoteTable& notes, std::span<const Pair> train, int64_t most) {
  std::vector<uint8_t> known(static_cast<size_t>(notes.size()));
  for (const Pair& pair : train) known[pair.query] = known[pair.target] = 1;
  std::vector<AskedLabels> slices;
  for (const bool clicked : {true, false}) {
    AskedLabels asked{clicked ? "clicked" : "unclicked", {}, {}, known};
    for (int32_t note = 0; note < notes.size(); ++note) {
      if (known[note] || (notes.in_pool[note] != 0) != clicked) continue;
      if (!notes.category[note].empty()) asked.category.push_back(note);
      if (notes.hashtags(note) > 0) asked.hashtags.push_back(note);
    }
    asked.category = every_kth(asked.category, most);
    asked.hashtags = every_kth(asked.hashtags, most);
    if (!asked.category.empty() || !asked.hashtags.empty()) slices.push_back(std::move(asked));
  }
  return slices;
}

LabelMethod majority_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader) {
  std::map<std::string, int64_t> categories, hashtags;
  for (int64_t note = 0; note < notes.size(); ++note) {
    if (!asked.known[note]) continue;
    if (const std::string category = reader.category(notes, note); !category.empty()) ++categories[category];
    for (const std::string& tag : reader.hashtags(notes, note)) ++hashtags[tag];
  }
  const std::vector<std::string> common = by_frequency(categories), tags = by_frequency(hashtags);
  LabelMethod method{"majority", {}, {}};
  method.categories.assign(asked.category.size(), common.empty() ? "" : common[0]);
  for (const int32_t note : asked.hashtags)
    method.hashtags.emplace_back(tags.begin(), tags.begin() + std::min(notes.hashtags(note), std::ssize(tags)));
  return method;
}

LabelMethod tfidf_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                         const std::filesystem::path& notes_file, const std::string& title_template) {
  std::vector<uint8_t> wanted = asked.known;
  for (const int32_t note : asked.category) wanted[note] = 1;
  for (const int32_t note : asked.hashtags) wanted[note] = 1;
  std::vector<int32_t> rows, place(wanted.size(), -1);
  for (int32_t note = 0; note < notes.size(); ++note)
    if (wanted[note]) {
      place[note] = static_cast<int32_t>(rows.size());
      rows.push_back(note);
    }
  const TfIdf texts(notes_file, title_template, wanted);
  LabelMethod method{"TF-IDF neighbour", {}, {}};
  for (const int32_t found :
       nearest(texts, rows, place, asked.category, asked, [&](int32_t note) { return !notes.category[note].empty(); }))
    method.categories.push_back(found < 0 ? "" : reader.category(notes, found));
  for (const int32_t found :
       nearest(texts, rows, place, asked.hashtags, asked, [&](int32_t note) { return notes.hashtags(note) > 0; }))
    method.hashtags.push_back(found < 0 ? std::vector<std::string>() : reader.hashtags(notes, found));
  return method;
}

LabelMethod generated_labels(Stream& stream, Mesh& mesh, NoteGenerator& generator, const Weights& weights,
                             const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                             const TokenTrie* closed, const std::string& name) {
  LabelMethod method{name, {}, {}};
  const bool show = mesh.world.rank() == 0;
  std::vector<NoteExample> examples;
  for (const int32_t note : asked.category) examples.push_back({note, Task::category, {}, Until::guidance});
  for (const Generated& output : generator.generate(stream, mesh.data, weights, notes, examples, closed, {}, show)) {
    const std::vector<std::string> labels = reader.labels(Task::category, output.tokens);
    method.categories.push_back(labels.empty() ? "" : labels[0]);
  }
  if (closed) return method;
  examples.clear();
  for (const int32_t note : asked.hashtags) {
    examples.push_back({note, Task::hashtags, {}, Until::guidance});
    examples.back().topics.resize(static_cast<size_t>(notes.hashtags(note)));
  }
  for (const Generated& output : generator.generate(stream, mesh.data, weights, notes, examples, nullptr, {}, show))
    method.hashtags.push_back(reader.labels(Task::hashtags, output.tokens));
  return method;
}

GenerationQuality score_labels(const NoteTable& notes, const AskedLabels& asked, const OutputReader& reader,
                               std::span<const LabelMethod> methods) {
  std::vector<std::string> categories, allowed(notes.category_names.size());
  std::vector<std::vector<std::string>> hashtags;
  for (const int32_t note : asked.category) categories.push_back(reader.category(notes, note));
  for (const int32_t note : asked.hashtags) hashtags.push_back(reader.hashtags(notes, note));
  for (int64_t note = 0; note < notes.size(); ++note)
    if (const int32_t id = notes.category_id[note]; id >= 0 && allowed[id].empty())
      allowed[id] = reader.category(notes, note);
  std::erase(allowed, "");
  const TextWords words = reader.preset() == PromptPreset::released ? TextWords::chinese : TextWords::international;
  const std::vector<std::string> wanted = joined(reader, hashtags);
  GenerationQuality quality{asked.slice, std::ssize(asked.category), std::ssize(asked.hashtags), {}};
  for (const LabelMethod& method : methods) {
    LabelScores scores{method.name, category_scores(method.categories, categories, allowed), false, 0, {}, {}};
    scores.of_hashtags = !asked.hashtags.empty() && !method.hashtags.empty();
    if (scores.of_hashtags) {
      const std::vector<std::string> texts = joined(reader, method.hashtags);
      scores.bleu = bleu(texts, wanted, words);
      scores.rouge = rouge(texts, wanted, words);
      scores.sets = set_scores(method.hashtags, hashtags);
    }
    quality.methods.push_back(std::move(scores));
  }
  return quality;
}

std::string format_quality(const GenerationQuality& quality) {
  size_t width = 0;
  for (const LabelScores& m : quality.methods) width = std::max(width, m.method.size());
  const auto percent = [](double share) { return fmt::format("  {:>8.1f}", 100 * share); };
  std::string text =
      fmt::format("\n{} notes in no training pair: categories of {}, hashtags of {}\n  {:<{}}", quality.slice,
                  format_count(quality.category_notes), format_count(quality.hashtag_notes), "", width);
  for (const char* column : {"accuracy", "illusory", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "set F1"})
    text += fmt::format("  {:>8}", column);
  for (const LabelScores& m : quality.methods) {
    text += fmt::format("\n  {:<{}}", m.method, width);
    if (quality.category_notes > 0)
      text += percent(m.category.accuracy) + percent(m.category.illusory);
    else
      text += fmt::format("  {:>8}  {:>8}", "", "");
    if (m.of_hashtags)
      for (const double share : {m.bleu, m.rouge.rouge_1, m.rouge.rouge_2, m.rouge.rouge_l, m.sets.f1})
        text += percent(share);
  }
  return text + "\n";
}

}  // namespace notellm

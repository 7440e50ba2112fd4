#include "evaluation/note_generator.h"

#include <algorithm>

#include "data_pipeline/prepare.h"
#include "data_pipeline/shards.h"
#include "evaluation/embedder.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

// Outputs as numbers, for the other ranks: for each the number of tokens, whether it ended, the tokens.
std::vector<int32_t> packed(const std::vector<Generated>& outputs) {
  std::vector<int32_t> numbers;
  for (const Generated& output : outputs) {
    numbers.push_back(static_cast<int32_t>(output.tokens.size()));
    numbers.push_back(output.ended);
    numbers.insert(numbers.end(), output.tokens.begin(), output.tokens.end());
  }
  return numbers;
}

std::vector<Generated> unpacked(const std::vector<int32_t>& numbers) {
  std::vector<Generated> outputs;
  for (auto at = numbers.begin(); at != numbers.end();) {
    const int32_t count = at[0];
    outputs.push_back({{at + 2, at + 2 + count}, at[1] != 0});
    at += 2 + count;
  }
  return outputs;
}

std::vector<Generated> gathered(Communicator& ranks, std::vector<Generated> own) {
  if (ranks.size() == 1) return own;
  const std::vector<int32_t> mine = packed(own);
  const std::vector<int64_t> sizes = ranks.all_gather("outputs", std::ssize(mine));
  int64_t total = 0;
  for (const int64_t size : sizes) total += size;
  std::vector<int32_t> all(static_cast<size_t>(total));
  ranks.all_gather_rows("outputs", Tensor::of(mine.data(), {std::ssize(mine)}), sizes, Tensor::of(all.data(), {total}));
  return unpacked(all);
}

}  // namespace

NoteGenerator::NoteGenerator(const ModelConfig& config, DType compute, const GenerationConfig& generation,
                             int batch_notes, Device device, Communicator* tensor)
    : generator_(config, compute, generation, device, tensor), context_(config.context), batch_notes_(batch_notes) {}

std::vector<Generated> NoteGenerator::generate(Stream& stream, Communicator& ranks, const Weights& weights,
                                               const NoteTable& notes, std::span<const NoteExample> examples,
                                               const TokenTrie* closed, Tensor vectors, bool show) {
  const auto all = std::ssize(examples);
  const auto begin_of = [&](int rank) { return all * rank / ranks.size(); };
  const int64_t first = begin_of(ranks.rank()), own = begin_of(ranks.rank() + 1) - first;
  const bool with_vectors = !vectors.empty();
  NOTELLM_CHECK(!with_vectors || vectors.rows() == all, "{} for {} notes", describe(vectors), all);
  Buffer memory(with_vectors ? own * vectors.cols() * 4 : 0);
  const Tensor mine = with_vectors ? memory.tensor(DType::f32, {own, vectors.cols()}) : Tensor();
  std::vector<Generated> outputs;
  Progress progress("generate", own, show && ranks.rank() == 0);
  for (int64_t begin = 0; begin < own; begin += batch_notes_) {
    const int64_t end = std::min(own, begin + batch_notes_);
    for (Generated& output : generate_batch(stream, weights, notes, examples.subspan(first + begin, end - begin),
                                            closed, with_vectors ? mine.slice(begin, end) : Tensor()))
      outputs.push_back(std::move(output));
    progress.advance(end - begin);
  }
  if (with_vectors) {
    std::vector<int64_t> rows;
    for (int rank = 0; rank < ranks.size(); ++rank) rows.push_back(begin_of(rank + 1) - begin_of(rank));
    ranks.all_gather_rows("note vectors", mine, rows, vectors);
    require_unit_vectors(vectors, [&](int64_t i) { return notes.ids[examples[i].note]; });
  }
  return gathered(ranks, std::move(outputs));
}

std::vector<Generated> NoteGenerator::generate_batch(Stream& stream, const Weights& weights, const NoteTable& notes,
                                                     std::span<const NoteExample> examples, const TokenTrie* closed,
                                                     Tensor vectors) {
  pack(notes, examples, true, batch_);
  for (size_t i = 0; i < examples.size(); ++i)
    if (const int32_t tokens = batch_.positions[batch_.label_rows[i]] + 1; tokens > context_)
      fail(ErrorKind::data,
           "note '{}' makes a prompt of {} tokens, more than the model's context of {}: lower "
           "data.prompt.max_note_tokens",
           notes.ids[examples[i].note], tokens, context_);
  return generator_.run(stream, weights, batch_, {notes.prompt.eos, notes.prompt.vocabulary, closed}, vectors);
}

TokenTrie category_trie(const NoteTable& notes) {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<bool> seen(notes.category_names.size());
  for (int64_t note = 0; note < notes.size(); ++note) {
    const int32_t id = notes.category_id[note];
    if (id < 0 || seen[id] || notes.category[note].empty()) continue;
    seen[id] = true;
    sequences.emplace_back(notes.category[note].begin(), notes.category[note].end());
  }
  if (sequences.empty()) fail(ErrorKind::data, "no note of the shards has a category: there is no closed set of them");
  return {std::move(sequences), notes.prompt.eos};
}

OutputReader::OutputReader(const std::filesystem::path& shards, const NoteTable& known)
    : tokenizer_(shards_tokenizer(shards, known)), preset_(prepared_config(shards).prompt.preset) {}

std::vector<std::string> OutputReader::labels(Task task, std::span<const int32_t> output) const {
  return labels_of_output(preset_, task, tokenizer_.decode(output, Place::goes_on));
}

std::string OutputReader::category(const NoteTable& notes, int64_t note) const {
  const std::vector<std::string> found = labels(Task::category, notes.category[note]);
  return found.empty() ? "" : found[0];
}

std::vector<std::string> OutputReader::hashtags(const NoteTable& notes, int64_t note) const {
  std::vector<std::string> hashtags;
  for (int64_t h = 0; h < notes.hashtags(note); ++h)
    for (std::string& tag :
         labels(Task::hashtags, notes.hashtag_last[static_cast<int64_t>(notes.hashtag_begin[note]) + h]))
      hashtags.push_back(std::move(tag));
  return hashtags;
}

}  // namespace notellm

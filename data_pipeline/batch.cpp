#include "data_pipeline/batch.h"

#include <algorithm>
#include <numeric>

#include "runtime/error.h"

namespace notellm {
namespace {

using Tokens = std::span<const int32_t>;

// Where the parts of an example's sequence lie in the note table.
struct Parts {
  Tokens instruction, note, guidance;
};

// Examples with the same number have the same instruction: 0 for category, j for hashtags.
int64_t group_of(const NoteExample& example) {
  return example.task == Task::hashtags ? static_cast<int64_t>(example.topics.size()) : 0;
}

Parts parts_of(const NoteTable& notes, const NoteExample& example) {
  NOTELLM_CHECK(example.note >= 0 && example.note < notes.size(), "note {} of {}", example.note, notes.size());
  const PromptTokens& prompt = notes.prompt;
  if (example.task != Task::hashtags)
    return {prompt.category_instruction, notes.category_input[example.note], prompt.category_guidance};
  const int64_t topics = group_of(example);
  NOTELLM_CHECK(topics >= 1 && topics <= prompt.hashtag_instruction.size(), "{} topics, prompts are for 1 to {}",
                topics, prompt.hashtag_instruction.size());
  return {prompt.hashtag_instruction[topics - 1], notes.hashtag_input[example.note],
          prompt.hashtag_guidance[topics - 1]};
}

// Tokens up to and including the note row; the note row must exist.
int64_t input_tokens(const Parts& parts) {
  const int64_t count = static_cast<int64_t>(parts.instruction.size() + parts.note.size());
  NOTELLM_CHECK(count > 0, "neither instruction nor note part");
  return count;
}

void append(Tokens tokens, std::vector<int32_t>& out) { out.insert(out.end(), tokens.begin(), tokens.end()); }

void append_output(const NoteTable& notes, const NoteExample& example, std::vector<int32_t>& out) {
  if (example.task == Task::category) return append(notes.category[example.note], out);
  for (size_t i = 0; i < example.topics.size(); ++i) {
    const int64_t topic = example.topics[i];
    NOTELLM_CHECK(topic >= 0 && topic < notes.hashtags(example.note), "hashtag {} of the {} of note {}", topic,
                  notes.hashtags(example.note), example.note);
    const int64_t row = static_cast<int64_t>(notes.hashtag_begin[example.note]) + topic;
    append(i + 1 < example.topics.size() ? notes.hashtag_inner[row] : notes.hashtag_last[row], out);
  }
}

// Appends the sequence without its first `skip` tokens, which end before the note row. Returns the index in `out` of
// the row that predicts the first output token; out.size() when the sequence has none.
int64_t append_example(const NoteTable& notes, const NoteExample& example, const Parts& parts, size_t skip,
                       std::vector<int32_t>& out) {
  append(parts.instruction.subspan(std::min(skip, parts.instruction.size())), out);
  append(parts.note.subspan(skip - std::min(skip, parts.instruction.size())), out);
  if (example.until == Until::note) return static_cast<int64_t>(out.size());
  out.push_back(notes.prompt.emb);
  append(parts.guidance, out);
  const int64_t first_label = static_cast<int64_t>(out.size()) - 1;
  if (example.until == Until::output) append_output(notes, example, out);
  return first_label;
}

// The examples of a batch with the same instruction, and the prefix segment that they share.
struct Group {
  int64_t examples = 0;
  Parts first;         // of the first of them
  int64_t common = 0;  // tokens at the beginning that all of them share, at most up to the row before a note row
  int32_t segment = -1;

  void add(const Parts& parts) {
    if (examples++ == 0) {
      first = parts;
      common = input_tokens(parts) - 1;
      return;
    }
    common = std::min(common, input_tokens(parts) - 1);
    const int64_t instruction = static_cast<int64_t>(parts.instruction.size());
    if (common <= instruction) return;
    const auto begin = first.note.begin();
    common = instruction + (std::mismatch(begin, begin + (common - instruction), parts.note.begin()).first - begin);
  }
};

// Ends the segment that begins at token `begin` and whose first position is `position`.
void close_segment(int64_t begin, int64_t position, int32_t prefix, PackedBatch& batch) {
  const int64_t end = static_cast<int64_t>(batch.tokens.size());
  batch.segments.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end), prefix});
  batch.positions.resize(end);
  std::iota(batch.positions.begin() + begin, batch.positions.end(), static_cast<int32_t>(position));
}

// Finds the groups and writes their prefix segments.
void pack_prefixes(const NoteTable& notes, std::span<const NoteExample> examples, std::vector<Group>& groups,
                   PackedBatch& batch) {
  for (const NoteExample& example : examples) {
    const Parts parts = parts_of(notes, example);
    groups[group_of(example)].add(parts);
  }
  for (Group& group : groups) {
    if (group.examples < 2 || group.common < 1) continue;
    const size_t begin = batch.tokens.size(), common = group.common;
    const Tokens instruction = group.first.instruction;
    append(instruction.first(std::min(common, instruction.size())), batch.tokens);
    append(group.first.note.first(common - std::min(common, instruction.size())), batch.tokens);
    group.segment = static_cast<int32_t>(batch.segments.size());
    close_segment(begin, 0, -1, batch);
  }
}

void clear(PackedBatch& batch) {
  batch.tokens.clear();
  batch.positions.clear();
  batch.segments.clear();
  batch.note_rows.clear();
  batch.note_ids.clear();
  batch.label_rows.clear();
  batch.labels.clear();
  batch.unshared_tokens = 0;
}

}  // namespace

int32_t compose(const NoteTable& notes, const NoteExample& example, std::vector<int32_t>& out, int32_t* first_label) {
  out.clear();
  const Parts parts = parts_of(notes, example);
  const int64_t note_row = input_tokens(parts) - 1;
  *first_label = static_cast<int32_t>(append_example(notes, example, parts, 0, out));
  return static_cast<int32_t>(note_row);
}

void pack(const NoteTable& notes, std::span<const NoteExample> examples, bool share_prefix, PackedBatch& batch) {
  // Scratch of the calling thread: one entry for each instruction, kept so that packing allocates nothing.
  thread_local std::vector<Group> groups;
  groups.assign(notes.prompt.hashtag_instruction.size() + 1, Group{});
  clear(batch);
  if (share_prefix) pack_prefixes(notes, examples, groups, batch);

  for (const NoteExample& example : examples) {
    const Parts parts = parts_of(notes, example);
    const Group& group = groups[group_of(example)];
    const int64_t begin = static_cast<int64_t>(batch.tokens.size());
    const int64_t skip = group.segment < 0 ? 0 : group.common;
    const int64_t first_label = append_example(notes, example, parts, skip, batch.tokens);
    close_segment(begin, skip, group.segment, batch);

    const int64_t end = static_cast<int64_t>(batch.tokens.size());
    batch.note_rows.push_back(static_cast<int32_t>(begin + input_tokens(parts) - 1 - skip));
    batch.note_ids.push_back(example.note);
    batch.unshared_tokens += end - begin + skip;
    for (int64_t row = first_label; row < end; ++row) {
      batch.label_rows.push_back(static_cast<int32_t>(row));
      batch.labels.push_back(row + 1 < end ? batch.tokens[row + 1] : notes.prompt.eos);
    }
  }
}

}  // namespace notellm

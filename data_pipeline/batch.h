// The packed batch: the notes of some pairs as one run of tokens without padding, where a prompt's beginning that
// several notes share is there once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data_pipeline/note_table.h"

namespace notellm {

enum class Task : uint8_t { category, hashtags };
enum class Until : uint8_t { note, guidance, output };  // where a sequence ends

// One note as it enters a batch.
struct NoteExample {
  int32_t note;  // row of the note table
  Task task = Task::category;
  std::vector<int32_t> topics;  // hashtags task: which of the note's hashtags, j in number, in the order of output
  // note: only the vector is asked for. guidance: the output is to be generated; the last row of the guidance has the
  // label EOS. In both, only the number of `topics` counts.
  Until until = Until::output;
};

// Tokens begin .. end of the batch. Each attends to all of segment `prefix` (-1: none), then to itself and the tokens
// before it in its own segment. A prefix segment has no prefix of its own and stands before the segments that use it.
struct Segment {
  int32_t begin, end;
  int32_t prefix;
};

struct PackedBatch {
  std::vector<int32_t> tokens;      // [n]
  std::vector<int32_t> positions;   // [n] RoPE positions: a segment's run on from its prefix's
  std::vector<Segment> segments;    // [s] in the order of tokens
  std::vector<int32_t> note_rows;   // [2b] row just before [EMB] of note i (in the order of `examples`)
  std::vector<int64_t> note_ids;    // [2b]; notes 2i and 2i + 1 are a pair
  std::vector<int32_t> label_rows;  // [m] ascending: rows that predict
  std::vector<int32_t> labels;      // [m] the tokens they predict: output and EOS
  int64_t unshared_tokens = 0;      // n, had no prefix been shared
};

// Writes the token sequence of an example to `out` (cleared first): instruction, note part, [EMB], guidance, output.
// EOS is only predicted: as an input token its row would have no use, so it is in no sequence; nor is [EMB] when the
// sequence ends at the note row. Returns the note row, the index of the last token before [EMB].
// Rows *first_label (the last guidance token, which predicts the first output token) to the end have labels: row r
// predicts token r + 1, the last one EOS. Until::note has none: *first_label = out.size().
int32_t compose(const NoteTable& notes, const NoteExample& example, std::vector<int32_t>& out, int32_t* first_label);

// Packs examples in their order into `batch` (cleared first; its vectors keep their capacity). share_prefix: notes with
// the same instruction (category; hashtags by j) get the longest common beginning of their sequences as one
// prefix segment, when at least two of them share at least one token; prefix segments stand before all notes. Sharing
// ends before the note row, so that each note row lies in its note's own segment.
void pack(const NoteTable& notes, std::span<const NoteExample> examples, bool share_prefix, PackedBatch& batch);

}  // namespace notellm

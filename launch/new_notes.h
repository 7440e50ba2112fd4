// Notes that are not in the shards, tokenised as those were, so that the model reads them as it read its own.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data_pipeline/note_table.h"
#include "data_pipeline/notes.h"
#include "data_pipeline/shards.h"

namespace notellm {

// What the prompts read of a note: ids, titles, the inputs of both tasks and the shared prompt. The rest of the table
// stays empty: it is for embedding and generating. With
// the tokenizer and the prompt of the folder of shards that `known` was read from. Throws Error(data): the folder's
// tokenizer is not the one that made its shards.
NoteTable tokenize_notes(const std::filesystem::path& shards, const NoteTable& known, const std::vector<Note>& notes);
// … of all notes of a file like notes.jsonl, with the shards' title template. Throws Error as NoteReader does.
NoteTable tokenize_file(const std::filesystem::path& shards, const NoteTable& known, const std::filesystem::path& file);

}  // namespace notellm

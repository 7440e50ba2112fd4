// Notes that the command line names: by id, or as texts.
#pragma once

#include <string>
#include <vector>

#include "data_pipeline/note_table.h"
#include "data_pipeline/notes.h"

namespace notellm {

// Rows of the table, in the order of `ids`. Throws Error(usage): an id that no note has.
std::vector<int32_t> rows_of_ids(const NoteTable& notes, const std::vector<std::string>& ids);
// Notes called "(text)"; the i-th content belongs to the i-th text, which is the title. Throws Error(usage): more
// contents than texts, a text that is no UTF-8, a note without text.
std::vector<Note> notes_of_texts(const std::vector<std::string>& texts, const std::vector<std::string>& contents);

}  // namespace notellm

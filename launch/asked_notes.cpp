#include "launch/asked_notes.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data_pipeline/prompt.h"
#include "runtime/error.h"

namespace notellm {

std::vector<int32_t> rows_of_ids(const NoteTable& notes, const std::vector<std::string>& ids) {
  std::unordered_map<std::string_view, int32_t> row_of;
  for (int32_t row = 0; row < notes.size(); ++row) row_of.emplace(notes.ids[row], row);
  std::vector<int32_t> rows;
  for (const std::string& id : ids) {
    const auto found = row_of.find(id);
    if (found == row_of.end()) fail(ErrorKind::usage, "--id {}: no note of the shards has this id", id);
    rows.push_back(found->second);
  }
  return rows;
}

std::vector<Note> notes_of_texts(const std::vector<std::string>& texts, const std::vector<std::string>& contents) {
  if (contents.size() > texts.size())
    fail(ErrorKind::usage, "{} --content for {} --text: each belongs to the --text of the same place", contents.size(),
         texts.size());
  std::vector<Note> notes;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string content = i < contents.size() ? contents[i] : "";
    for (const std::string& text : {texts[i], content}) {
      try {
        (void)nlohmann::json(text).dump();  // refuses what is no UTF-8
      } catch (const nlohmann::json::exception&) {
        fail(ErrorKind::usage, "--text or --content number {} is not valid UTF-8", i + 1);
      }
    }
    if (fold_spaces(texts[i] + content).empty()) fail(ErrorKind::usage, "--text number {} is empty", i + 1);
    notes.push_back({"(text)", texts[i], content, "", {}});
  }
  return notes;
}

}  // namespace notellm

#include "data_pipeline/text_sample.h"

#include <algorithm>
#include <map>

#include "runtime/random.h"

namespace notellm {

void TextSample::offer(int64_t row, const Note& note) {
  const uint64_t key = random_bits(1, row, 0);
  if (std::ssize(kept_) == most_) {
    if (key >= kept_.top().key) return;
    kept_.pop();
  }
  kept_.push({key, row, text_of(row, note)});
}

std::vector<std::string> TextSample::take() {
  std::map<int64_t, std::string> by_row;
  for (; !kept_.empty(); kept_.pop()) by_row.emplace(kept_.top().row, kept_.top().text);
  std::vector<std::string> texts;
  for (auto& [row, text] : by_row) texts.push_back(std::move(text));
  return texts;
}

std::string TextSample::text_of(int64_t row, const Note& note) const {
  constexpr size_t longest_text = 2000;
  Note shown = note;
  for (std::string* text : {&shown.title, &shown.content}) {
    if (text->size() <= longest_text) continue;
    size_t end = longest_text;
    while (((*text)[end] & 0xc0) == 0x80) --end;  // not inside a character
    text->resize(end);
  }
  shown.hashtags.resize(std::min<size_t>(shown.hashtags.size(), prompt_.max_hashtags));
  const Task task = row % 2 && !shown.hashtags.empty() ? Task::hashtags : Task::category;
  const PromptText text = prompt_text(prompt_.preset, task, shown);
  // What follows [EMB] up to the next space follows nothing else; it would be learned as part of another word.
  const std::string after = text.guidance + text.output;
  return fold_spaces(text.instruction + text.note + " " + after.substr(after.find(' ') + 1));
}

}  // namespace notellm

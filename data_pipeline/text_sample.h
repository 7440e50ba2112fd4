// A bounded sample of the notes' prompts, to train a tokenizer on.
#pragma once

#include <cstdint>
#include <queue>
#include <string>
#include <vector>

#include "data_pipeline/notes.h"
#include "data_pipeline/prompt.h"

namespace notellm {

// Keeps the `most` notes whose rows have the smallest hashes: the same sample, however the notes are read. Of each it
// keeps the text of one prompt, the category and the hashtag task by turns, on one line, title and content cut at 2,000
// bytes.
class TextSample {
 public:
  TextSample(int64_t most, const PromptConfig& prompt) : most_(most), prompt_(prompt) {}

  void offer(int64_t row, const Note& note);
  // The texts, in the order of rows; empties the sample.
  std::vector<std::string> take();

 private:
  struct Kept {
    uint64_t key;
    int64_t row;
    std::string text;
    bool operator<(const Kept& other) const { return key < other.key; }
  };
  std::string text_of(int64_t row, const Note& note) const;

  int64_t most_;
  PromptConfig prompt_;
  std::priority_queue<Kept> kept_;
};

}  // namespace notellm

// A small random note table and pair table, for tests of what stands on them.
#pragma once

#include <random>

#include "data_pipeline/note_table.h"

namespace notellm::test {

struct TinyData {
  NoteTable notes;
  PairTable pairs;
};

// `count` notes with inputs of 2 to 9 tokens out of a vocabulary of 40 (BOS 1, EOS 2, [EMB] 39), most with a category
// of 1 or 2 tokens and 0 to 3 hashtags; every note is paired with two others; both prompts have an instruction of 3
// tokens.
inline TinyData tiny_data(int count, unsigned seed = 1) {
  std::mt19937 random(seed);
  const auto between = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const auto words = [&](int low, int high) {
    std::vector<int32_t> list(between(low, high));
    for (int32_t& t : list) t = between(3, 38);
    return list;
  };
  TinyData data;
  NoteTable& n = data.notes;
  n.prompt = {.emb = 39,
              .eos = 2,
              .vocabulary = 40,
              .category_instruction = {1, 10, 11},
              .category_guidance = {12, 13},
              .hashtag_instruction = {},
              .hashtag_guidance = {}};
  for (int32_t j = 0; j < 3; ++j) {
    n.prompt.hashtag_instruction.push_back(std::vector<int32_t>{1, 14, 15 + j});
    n.prompt.hashtag_guidance.push_back(std::vector<int32_t>{12, 18 + j});
  }
  n.tokenizer_digest = "tiny";
  for (int i = 0; i < count; ++i) {
    n.ids.push_back(std::to_string(100 + i));
    n.titles.push_back("note " + std::to_string(i));
    n.category_input.push_back(words(2, 9));
    n.hashtag_input.push_back(words(2, 9));
    const bool has_category = i % 5 != 0;
    n.category.push_back(has_category ? words(1, 2) : std::vector<int32_t>());
    n.category_id.push_back(has_category ? i % 3 : -1);
    for (int h = between(0, 3); h > 0; --h) {
      n.hashtag_inner.push_back(words(1, 3));
      n.hashtag_last.push_back(words(1, 2));
    }
    n.hashtag_begin.push_back(n.hashtag_last.size());
    n.clicks.push_back(between(0, 9));
    n.in_pool.push_back(1);
  }
  n.category_names = {"a", "b", "c"};
  for (int i = 0; i < count; ++i)
    for (int step : {1, 5}) data.pairs.train.push_back({i, (i + step) % count, 1.0f});
  data.pairs.test = data.pairs.train;
  return data;
}

}  // namespace notellm::test

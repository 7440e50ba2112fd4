// The prepared notes and pairs in memory: what shards hold (docs/data_formats.md) and what training and evaluation
// read.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace notellm {

// Lists of tokens of different lengths, back to back: list i is values[offsets[i] .. offsets[i + 1]).
struct Ragged {
  std::vector<uint64_t> offsets = {0};
  std::vector<int32_t> values;

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> operator[](int64_t i) const {
    return {values.data() + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])};
  }
  void push_back(std::span<const int32_t> list) {
    values.insert(values.end(), list.begin(), list.end());
    offsets.push_back(values.size());
  }
};

// The tokens that all notes share. A note's sequence for a task with j topics is
//     instruction  note part  [EMB]  guidance  output
// and instruction begins with BOS, output ends with EOS. The note vector is read at the last row before [EMB].
struct PromptTokens {
  int32_t emb = 0;  // [EMB]
  int32_t eos = 0;
  int32_t vocabulary = 0;  // tokens in use: all ids are below it
  std::vector<int32_t> category_instruction;
  std::vector<int32_t> category_guidance;
  Ragged hashtag_instruction;  // by j - 1
  Ragged hashtag_guidance;     // by j - 1
};

struct NoteTable {
  PromptTokens prompt;
  std::string tokenizer_digest;          // of the tokenizer that made the tokens
  std::string shards;                    // id of the shards that these are; empty: they are in none
  std::vector<std::string> ids;          // as in notes.jsonl; row = place in notes.jsonl
  std::vector<std::string> titles;       // for people
  Ragged category_input, hashtag_input;  // the note part for each task
  Ragged category;                       // output tokens without EOS; empty: no category
  std::vector<int32_t> category_id;      // index into category_names, -1: none
  std::vector<std::string> category_names;
  std::vector<uint64_t> hashtag_begin = {0};  // note i has hashtags hashtag_begin[i] .. hashtag_begin[i + 1]
  Ragged hashtag_inner, hashtag_last;         // output tokens of a hashtag: followed by another one, and as the last
  std::vector<int32_t> clicks;                // training users that clicked the note
  std::vector<uint8_t> in_pool;               // 1: some kept user clicked it

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  int64_t hashtags(int64_t note) const { return static_cast<int64_t>(hashtag_begin[note + 1] - hashtag_begin[note]); }
};

struct Pair {
  int32_t query, target;  // rows of the note table
  float score;            // s(query → target)
};

struct PairTable {
  std::vector<Pair> train, test;
};

}  // namespace notellm

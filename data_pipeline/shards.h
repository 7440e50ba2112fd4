// Shards: the prepared notes and pairs on disk (docs/data_formats.md).
//
//   shards.json       what all shards share; written last, so that a folder with it is complete
//   notes-00000.h5 …  at most notes_per_shard notes each, in the order of notes.jsonl
//   pairs-00000.h5 …  groups train and test: query, target int32, score f32; at most pairs_per_shard of each a file
//   tokenizer.model   the SentencePiece model that made the tokens; or tokenizer.json and tokenizer_config.json
// A ragged list NAME is NAME/offsets uint64 [n + 1] and NAME/values int32 (ids and titles: uint8, UTF-8), offsets
// counting from the file's first value. Each .h5 is sealed (hdf5_file.h), and has the text attributes format,
// set (the id of the run that made it), tokenizer (digest), preset, and its counts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "data_pipeline/note_table.h"
#include "data_pipeline/tokenizer.h"

namespace notellm {

// What all shards of a folder share: shards.json.
struct ShardSet {
  std::string id;  // hash of everything that decides the content
  std::string tokenizer_digest;
  std::string preset;                         // "paper"
  std::string config;                         // the configuration that decided the content, as YAML
  std::map<std::string, std::string> inputs;  // input file → checksum
  PromptTokens prompt;
  std::vector<std::string> category_names;
  int64_t notes = 0, train_pairs = 0, test_pairs = 0;
  int64_t notes_per_shard = 0, pairs_per_shard = 0;

  int64_t note_shards() const { return (notes + notes_per_shard - 1) / notes_per_shard; }
  int64_t pair_shards() const;
};

// notes-<shard>.h5 from a table of this shard's notes alone. Throws Error(io).
void write_notes_shard(const std::filesystem::path& folder, const ShardSet& set, int64_t shard, const NoteTable& notes);
// pairs-<shard>.h5. Throws Error(io).
void write_pairs_shard(const std::filesystem::path& folder, const ShardSet& set, int64_t shard,
                       std::span<const Pair> train, std::span<const Pair> test);
// shards.json: the folder is complete. Throws Error(io).
void finish_shards(const std::filesystem::path& folder, const ShardSet& set);

// Throws Error(io): no shards.json, the folder is not complete or there is none; Error(data): it is not of this format,
// impossible counts or tokens.
ShardSet read_shard_set(const std::filesystem::path& folder);
bool has_shards(const std::filesystem::path& folder);

struct Shards {
  NoteTable notes;
  PairTable pairs;
};
// Reads a whole folder, file by file, straight into the tables (memory: the tables). Throws Error(io): a file is
// missing; Error(data), naming file and array: cut short, damaged or foreign, another format, of another run, tokenizer
// or preset than shards.json, arrays of other lengths, offsets that descend or point outside, tokens outside the
// vocabulary, rows outside the notes.
Shards read_shards(const std::filesystem::path& folder);
// Whether all files of the set are there as they were written, by their checksums: throws as read_shards, without
// looking at arrays, and as shards_tokenizer.
void check_shards(const std::filesystem::path& folder);
// The tokenizer of a folder whose notes these are. Throws as Tokenizer::load_stored; Error(data): it is not the one
// that made their tokens.
Tokenizer shards_tokenizer(const std::filesystem::path& folder, const NoteTable& notes);

// Names of files in a folder of shards.
std::string notes_shard_name(int64_t shard);
std::string pairs_shard_name(int64_t shard);
inline constexpr const char* shard_set_file_name = "shards.json";

}  // namespace notellm

// The small random notes of tiny_notes.h as a folder of shards.
#pragma once

#include <filesystem>

#include "data_pipeline/shards.h"
#include "runtime/files.h"
#include "tests/support/tiny_notes.h"

namespace notellm::test {

inline void write_tiny_shards(const std::filesystem::path& folder, const TinyData& data) {
  ShardSet set;
  set.id = "tiny";
  set.tokenizer_digest = data.notes.tokenizer_digest;
  set.preset = "paper";
  set.prompt = data.notes.prompt;
  set.category_names = data.notes.category_names;
  set.notes = set.notes_per_shard = data.notes.size();
  set.train_pairs = set.pairs_per_shard = static_cast<int64_t>(data.pairs.train.size());
  set.test_pairs = static_cast<int64_t>(data.pairs.test.size());
  std::filesystem::create_directories(folder);
  write_notes_shard(folder, set, 0, data.notes);
  write_pairs_shard(folder, set, 0, data.pairs.train, data.pairs.test);
  write_file(folder / tokenizer_file_names[0], "no tokenizer");
  finish_shards(folder, set);
}

}  // namespace notellm::test

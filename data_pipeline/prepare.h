// The stage `prepare`: notes and clicks to shards.
//
// The same input and configuration give the same bytes, whatever the number of threads and ranks. The shards are built
// in FOLDER.partial, which takes FOLDER's place at the end (replace_folder); a run that ends early leaves an older
// FOLDER as it was. All ranks must see the same file system. When FOLDER was made from the same input with the same
// configuration and program format, and is not damaged, nothing is done.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data_pipeline/clicks.h"
#include "data_pipeline/cooccurrence.h"
#include "data_pipeline/prompt.h"
#include "data_pipeline/shards.h"
#include "data_pipeline/tokenizer.h"
#include "runtime/communicator.h"
#include "runtime/config.h"

namespace notellm {

struct PrepareConfig {
  std::string notes;              // notes.jsonl
  std::string title = "{title}";  // template: which of a line's fields make the title
  std::string shards;             // the folder to write
  ClicksConfig clicks;
  CooccurrenceConfig cooccurrence;
  TokenizerConfig tokenizer;
  PromptConfig prompt;
  int notes_per_shard = 16384;
  int pairs_per_shard = 1 << 20;
  int memory_mb = 2048;  // of each rank
  void fields(Fields& fields);
};

// What was read, kept and skipped; sums over ranks.
struct PrepareReport {
  bool up_to_date = false;  // nothing was done; only `set` is filled
  ShardSet set;
  NotesStats notes;
  ClicksStats clicks;
  CooccurrenceStats train, test;
  int64_t tokens = 0;  // of the category prompts' note parts
  int64_t titles_cut = 0, contents_cut = 0, notes_shortened = 0;
  int64_t categories_left_out = 0, hashtags = 0, hashtags_left_out = 0, hashtags_beyond = 0;
  std::vector<std::pair<std::string, double>> seconds;  // by stage, of rank 0

  std::string describe() const;  // a table for people
};

// Called by all ranks together. Throws Error(usage): a key without value, memory_mb too small, a folder that holds
// other files; Error(data), Error(io): see notes.h, clicks.h, tokenizer.h; an input that is no longer what its checksum
// says; no training pair is left. Where rank 0 fails, it removes FOLDER.partial; what stays, the next run removes.
PrepareReport prepare(const PrepareConfig& config, Communicator& ranks);

// The configuration that made the shards in a folder (`shards` set to the folder), for whoever tokenises new text
// alike.
PrepareConfig prepared_config(const std::filesystem::path& folder);

}  // namespace notellm

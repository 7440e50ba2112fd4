#include "data_pipeline/prepare.h"

#include <omp.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "data_pipeline/pair_spool.h"
#include "data_pipeline/text_sample.h"
#include "runtime/error.h"
#include "runtime/file_lock.h"
#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/parallel_for.h"
#include "runtime/progress.h"
#include "runtime/stopwatch.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

constexpr const char* build_format = "notellm prepare 4";  // changes when the same input would give other shards

// "a/b/" and "a/b" are the same folder, with a name of its own to put ".partial" behind. A link stays: the folder that
// it leads to is replaced.
fs::path folder_of(const PrepareConfig& config) {
  const fs::path path = fs::path(config.shards).lexically_normal();
  const fs::path folder = path.has_filename() ? path : path.parent_path();
  return fs::is_symlink(folder) && fs::exists(folder) ? fs::canonical(folder) : folder;
}

// What decides the content: the configuration less where the shards go and how much memory may be used.
std::string content_config(PrepareConfig config) {
  config.shards.clear();
  config.memory_mb = PrepareConfig{}.memory_mb;
  Fields fields;
  config.fields(fields);
  return print_config(fields);
}

std::map<std::string, std::string> checksums(const PrepareConfig& config) {
  std::map<std::string, std::string> inputs;
  inputs[config.notes] = checksum_file(config.notes);
  for (const std::string& file : config.clicks.files) inputs[file] = checksum_file(file);
  if (!config.tokenizer.model.empty())
    for (const fs::path& file : tokenizer_inputs(config.tokenizer.model)) inputs[file.string()] = checksum_file(file);
  return inputs;
}

bool is_own_file(const fs::path& path) {
  const std::string name = path.filename().string();
  return name == shard_set_file_name ||
         std::ranges::find(tokenizer_file_names, name) != std::end(tokenizer_file_names) ||
         (path.extension() == ".h5" && (name.starts_with("notes-") || name.starts_with("pairs-")));
}

void check_config(const PrepareConfig& config) {
  if (config.notes.empty()) fail(ErrorKind::usage, "data.notes: no file is given; set it to a notes.jsonl");
  if (config.shards.empty())
    fail(ErrorKind::usage, "data.shards: no folder is given; set it to where the shards shall go");
  if (config.clicks.files.empty())
    fail(ErrorKind::usage, "data.clicks.files: no file is given; set it to the click logs");
  const fs::path folder = folder_of(config);
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder)) fail(ErrorKind::usage, "data.shards: {} is not a folder", folder.string());
  for (const auto& entry : fs::directory_iterator(folder))
    if (!is_own_file(entry.path()))
      fail(ErrorKind::usage,
           "data.shards: {} is not a file of shards, and the folder is replaced as a whole; choose another "
           "folder",
           entry.path().string());
}

// Of all that decides the content; the rest of the set is not looked at.
std::string id_of(const ShardSet& set) {
  std::string identity = fmt::format("{}\n{}\n{}\n", build_format, set.config, set.tokenizer_digest);
  for (const auto& [file, sum] : set.inputs) identity += fmt::format("{} {}\n", file, sum);
  return checksum(identity);
}

// True when the folder holds the shards of this input and configuration, and train can read them.
bool is_up_to_date(const fs::path& folder, ShardSet wanted) {
  if (!has_shards(folder)) return false;
  try {
    const ShardSet found = read_shard_set(folder);
    wanted.tokenizer_digest = found.tokenizer_digest;
    if (found.id != id_of(wanted)) return false;
    check_shards(folder);
    return true;
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
    return false;
  }
}

void append_note(NoteTable& table, const Note& note, const NoteTokens& tokens, int32_t category_id) {
  table.ids.push_back(note.id);
  table.titles.push_back(note.title);
  table.category_input.push_back(tokens.category_input);
  table.hashtag_input.push_back(tokens.hashtag_input);
  table.category.push_back(tokens.category);
  table.category_id.push_back(tokens.category.empty() ? -1 : category_id);
  for (const auto& hashtag : tokens.hashtag_inner) table.hashtag_inner.push_back(hashtag);
  for (const auto& hashtag : tokens.hashtag_last) table.hashtag_last.push_back(hashtag);
  table.hashtag_begin.push_back(table.hashtag_inner.size());
}

// One run of the stage on one rank.
class Run {
 public:
  Run(const PrepareConfig& config, Communicator& ranks)
      : config_(config), ranks_(ranks), folder_(folder_of(config)), partial_(folder_.string() + ".partial") {
    set_.preset = config.prompt.preset == PromptPreset::paper ? "paper" : "released";
    set_.config = content_config(config);
    set_.notes_per_shard = config.notes_per_shard;
    set_.pairs_per_shard = config.pairs_per_shard;
  }

  PrepareReport run() {
    timed("inputs", [&] { set_.inputs = checksums(config_); });
    const bool up_to_date = first() && find_or_lock();
    if (ranks_.broadcast("prepare: up to date", up_to_date ? "1" : "0", 0) == "1") {
      report_.set = read_shard_set(folder_);
      report_.up_to_date = true;
      spdlog::info("prepare: {} is up to date", folder_.string());
      return report_;
    }
    try {
      build();
    } catch (const fs::filesystem_error& error) {
      discard();
      fail(ErrorKind::io, "{}", error.what());
    } catch (...) {
      discard();
      throw;
    }
    report_.set = set_;
    return report_;
  }

 private:
  bool first() const { return ranks_.rank() == 0; }

  // True when there is nothing to do; else this is the only prepare that writes there.
  bool find_or_lock() {
    if (is_up_to_date(folder_, set_)) return true;
    lock_.emplace(folder_.string() + ".lock", fmt::format("another prepare makes {}", folder_.string()), "data.shards",
                  60);
    return lock_->waited() && is_up_to_date(folder_, set_);  // by the other one
  }

  template <class Work>
  void timed(const char* stage, Work work) {
    const Stopwatch watch;
    work();
    const double seconds = watch.seconds();
    report_.seconds.emplace_back(stage, seconds);
    if (seconds > 1) spdlog::info("prepare: {} took {}", stage, format_seconds(seconds));
  }

  // By rank 0 alone, whose error is said first: that the folder is gone must not be taken for the cause.
  void discard() const {
    std::error_code ignored;
    if (first()) fs::remove_all(partial_, ignored);
  }

  void build() {
    if (first()) {
      fs::remove_all(partial_);
      fs::create_directories(partial_);
    }
    ranks_.barrier("prepare: folder");
    timed("read notes", [&] { read_notes(); });
    timed("tokenizer", [&] { make_tokenizer(); });
    timed("clicks", [&] { count_clicks(); });
    timed("tokenize notes", [&] { write_notes(); });
    timed("write pairs", [&] { write_pairs(); });
    ranks_.barrier("prepare: shards");
    if (first()) publish();
    ranks_.barrier("prepare: done");
  }

  void read_notes() {
    NoteReader reader(config_.notes, config_.title);
    const bool sampling = first() && config_.tokenizer.model.empty();
    TextSample sample(config_.tokenizer.training_texts, config_.prompt);
    std::set<std::string, std::less<>> categories;
    Progress progress("read notes", 0, first());
    int64_t row = 0;
    for (std::vector<Note> batch; reader.read(batch);) {
      for (const Note& note : batch) {
        if (sampling) sample.offer(row, note);
        if (std::string category = fold_spaces(note.category); !category.empty())
          categories.insert(std::move(category));
        ++row;
      }
      progress.advance(std::ssize(batch));
    }
    require_unchanged(config_.notes, reader.checksum());
    index_ = reader.take_index();
    texts_ = sample.take();
    report_.notes = reader.stats();
    set_.notes = index_.size();
    set_.category_names.assign(categories.begin(), categories.end());
  }

  void make_tokenizer() {
    const bool given = !config_.tokenizer.model.empty();
    if (given) {
      tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(config_.tokenizer.model));
      for (const fs::path& file : tokenizer_inputs(config_.tokenizer.model))
        require_unchanged(file.string(), checksum_file(file));
    } else {
      std::string model;
      if (first()) {
        spdlog::info("prepare: training a tokenizer on {} texts", format_count(std::ssize(texts_)));
        model = Tokenizer::train(texts_, config_.tokenizer.vocabulary);
      }
      model = ranks_.broadcast("prepare: tokenizer", model, 0);
      tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::from_model(std::move(model), "the trained tokenizer"));
    }
    texts_ = {};
    if (first())
      for (const auto& [name, bytes] : tokenizer_->files()) write_file(partial_ / name, bytes);
    prompt_ = std::make_unique<Prompt>(*tokenizer_, config_.prompt);
    set_.prompt = prompt_->shared();
    set_.tokenizer_digest = tokenizer_->digest();
    set_.id = id_of(set_);
    ranks_.require_equal("prepare: input", "configuration and input files", set_.id);
  }

  void count_clicks() {
    // What the notes' ids, the program and its libraries take; the click log gets the rest.
    const int64_t taken = (int64_t{160} << 20) + 64 * index_.size(), least = int64_t{32} << 20;
    const int64_t memory = (int64_t{config_.memory_mb} << 20) - taken;
    if (memory < least)
      fail(ErrorKind::usage, "data.memory_mb: {} is too little for {} notes; set at least {}", config_.memory_mb,
           format_count(index_.size()), ((taken + least) >> 20) + 1);
    const ClickLists lists = read_clicks(config_.clicks, index_, partial_, memory, first());
    for (size_t i = 0; i < config_.clicks.files.size(); ++i)
      require_unchanged(config_.clicks.files[i], lists.checksums()[i]);
    report_.clicks = lists.stats();
    index_ = {};
    set_.train_pairs = spool_pairs(lists, Split::train, "train", memory, report_.train);
    set_.test_pairs = spool_pairs(lists, Split::heldout, "test", memory, report_.test);
    if (set_.train_pairs == 0)
      fail(ErrorKind::data,
           "no training pair is left of {} training users: {} scores are under data.cooccurrence.lower ({}), {} over "
           "data.cooccurrence.upper ({}); lower the first or raise the second",
           report_.clicks.kept_users[0], report_.train.low, config_.cooccurrence.lower, report_.train.high,
           config_.cooccurrence.upper);
    clicks_.assign(lists.training_users().begin(), lists.training_users().end());
    in_pool_.assign(lists.in_pool().begin(), lists.in_pool().end());
  }

  // Returns the number of pairs on all ranks; `stats` gets the sums over ranks.
  int64_t spool_pairs(const ClickLists& lists, Split split, const char* name, int64_t memory,
                      CooccurrenceStats& stats) {
    PairSpool spool(partial_, name, ranks_.rank());
    stats = cooccurrence(ranks_, lists, split, config_.cooccurrence, memory,
                         [&](std::span<const Pair> pairs) { spool.append(pairs); });
    spool.finish();
    sum({&stats.triples, &stats.scored, &stats.low, &stats.high, &stats.beyond, &stats.pairs});
    stats.seconds = ranks_.max("prepare: seconds", stats.seconds);
    return stats.pairs;
  }

  void sum(std::initializer_list<int64_t*> values) {
    std::vector<int64_t> buffer;
    for (const int64_t* value : values) buffer.push_back(*value);
    ranks_.all_reduce_sum("prepare: counts", Tensor::of(buffer.data(), {std::ssize(buffer)}));
    for (size_t i = 0; i < buffer.size(); ++i) *values.begin()[i] = buffer[i];
  }

  // Rank r writes the shards r, r + ranks, …
  bool is_mine(int64_t row) const { return row / set_.notes_per_shard % ranks_.size() == ranks_.rank(); }

  void write_notes() {
    NoteReader reader(config_.notes, config_.title);
    std::vector<WordEncoder> encoders(omp_get_max_threads(), WordEncoder(*tokenizer_));
    Progress progress("tokenize notes", set_.notes, first());
    NoteTable table;
    int64_t row = 0;
    for (std::vector<Note> batch; reader.read(batch);) {
      const std::vector<NoteTokens> tokens = tokenize(batch, row, encoders);
      for (size_t i = 0; i < batch.size(); ++i, ++row) {
        if (!is_mine(row)) continue;
        append_note(table, batch[i], tokens[i], category_id(batch[i]));
        count(tokens[i]);
        if ((row + 1) % set_.notes_per_shard == 0 || row + 1 == set_.notes) write_shard(row, table);
      }
      progress.advance(std::ssize(batch));
    }
    require_unchanged(config_.notes, reader.checksum());
    sum({&report_.tokens, &report_.titles_cut, &report_.contents_cut, &report_.notes_shortened,
         &report_.categories_left_out, &report_.hashtags, &report_.hashtags_left_out, &report_.hashtags_beyond});
  }

  std::vector<NoteTokens> tokenize(const std::vector<Note>& batch, int64_t row, std::vector<WordEncoder>& encoders) {
    std::vector<NoteTokens> tokens(batch.size());
    parallel_for(std::ssize(batch), [&](int64_t i) {
      if (is_mine(row + i)) tokens[i] = prompt_->tokens(encoders[omp_get_thread_num()], batch[i]);
    });
    return tokens;
  }

  int32_t category_id(const Note& note) const {
    const std::string name = fold_spaces(note.category);
    if (name.empty()) return -1;
    const auto found = std::lower_bound(set_.category_names.begin(), set_.category_names.end(), name);
    if (found == set_.category_names.end() || *found != name) changed(config_.notes);
    return static_cast<int32_t>(found - set_.category_names.begin());
  }

  [[noreturn]] void changed(const std::string& file) const {
    fail(ErrorKind::data, "{}: changed while it was read; run prepare again", file);
  }

  // What was read is what the set's id stands for.
  void require_unchanged(const std::string& file, const std::string& read) const {
    if (read != set_.inputs.at(file)) changed(file);
  }

  void count(const NoteTokens& tokens) {
    report_.tokens += std::ssize(tokens.category_input);
    report_.titles_cut += tokens.title_cut;
    report_.contents_cut += tokens.content_cut;
    report_.notes_shortened += tokens.shortened;
    report_.categories_left_out += tokens.category_left_out;
    report_.hashtags += std::ssize(tokens.hashtag_inner);
    report_.hashtags_left_out += tokens.hashtags_left_out;
    report_.hashtags_beyond += tokens.hashtags_beyond;
  }

  // The shard whose last row is `last`; empties the table.
  void write_shard(int64_t last, NoteTable& table) {
    if (last >= set_.notes) changed(config_.notes);
    const int64_t begin = last + 1 - table.size();
    table.clicks.assign(clicks_.begin() + begin, clicks_.begin() + last + 1);
    table.in_pool.assign(in_pool_.begin() + begin, in_pool_.begin() + last + 1);
    write_notes_shard(partial_, set_, last / set_.notes_per_shard, table);
    table = {};
  }

  void write_pairs() {
    if (!first()) return;
    SpooledPairs train(partial_, "train", ranks_.size()), test(partial_, "test", ranks_.size());
    for (int64_t shard = 0; shard < set_.pair_shards(); ++shard) {
      const auto train_pairs = train.next(set_.pairs_per_shard), test_pairs = test.next(set_.pairs_per_shard);
      write_pairs_shard(partial_, set_, shard, train_pairs, test_pairs);
    }
    train.remove();
    test.remove();
  }

  // The folder becomes complete, and takes the place of an older one.
  void publish() {
    finish_shards(partial_, set_);
    sync_directory(partial_);
    replace_folder(partial_, folder_);
  }

  const PrepareConfig& config_;
  Communicator& ranks_;
  const fs::path folder_, partial_;
  std::optional<FileLock> lock_;  // rank 0
  PrepareReport report_;
  ShardSet set_;
  NoteIndex index_;
  std::vector<std::string> texts_;  // to train a tokenizer on; rank 0
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Prompt> prompt_;
  std::vector<int32_t> clicks_;   // [notes]
  std::vector<uint8_t> in_pool_;  // [notes]
};

}  // namespace

PrepareReport prepare(const PrepareConfig& config, Communicator& ranks) {
  check_config(config);
  return Run(config, ranks).run();
}

}  // namespace notellm

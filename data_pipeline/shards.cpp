#include "data_pipeline/shards.h"

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "data_pipeline/hdf5_file.h"
#include "runtime/error.h"
#include "runtime/files.h"

namespace notellm {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* set_format = "notellm shards 1";
constexpr const char* notes_format = "notellm notes 1";
constexpr const char* pairs_format = "notellm pairs 1";

// The token lists of a note table that have one list a note, and those with one a hashtag.
constexpr std::pair<const char*, Ragged NoteTable::*> note_lists[] = {
    {"category_input", &NoteTable::category_input},
    {"hashtag_input", &NoteTable::hashtag_input},
    {"category", &NoteTable::category},
};
constexpr std::pair<const char*, Ragged NoteTable::*> hashtag_lists[] = {
    {"hashtag_inner", &NoteTable::hashtag_inner},
    {"hashtag_last", &NoteTable::hashtag_last},
};
constexpr std::pair<const char*, std::vector<std::string> NoteTable::*> text_arrays[] = {
    {"ids", &NoteTable::ids},
    {"titles", &NoteTable::titles},
};

void write_texts(Hdf5Writer& file, const std::string& name, const std::vector<std::string>& texts) {
  std::vector<uint64_t> offsets = {0};
  std::vector<uint8_t> bytes;
  for (const std::string& text : texts) {
    bytes.insert(bytes.end(), text.begin(), text.end());
    offsets.push_back(bytes.size());
  }
  file.write(name + "/offsets", offsets);
  file.write(name + "/values", bytes);
}

void write_attributes(Hdf5Writer& file, const ShardSet& set, const char* format) {
  file.write_text("format", format);
  file.write_text("set", set.id);
  file.write_text("tokenizer", set.tokenizer_digest);
  file.write_text("preset", set.preset);
}

void write_pairs(Hdf5Writer& file, const std::string& group, std::span<const Pair> pairs) {
  std::vector<int32_t> queries, targets;
  std::vector<float> scores;
  for (const Pair& pair : pairs) {
    queries.push_back(pair.query);
    targets.push_back(pair.target);
    scores.push_back(pair.score);
  }
  file.write(group + "/query", queries);
  file.write(group + "/target", targets);
  file.write(group + "/score", scores);
  file.write_text(group + "_pairs", std::to_string(pairs.size()));
}

Json to_json(const Ragged& lists) {
  Json json = Json::array();
  for (int64_t i = 0; i < lists.size(); ++i) json.push_back(std::vector<int32_t>(lists[i].begin(), lists[i].end()));
  return json;
}

Ragged to_ragged(const Json& json) {
  Ragged lists;
  for (const Json& list : json) lists.push_back(list.get<std::vector<int32_t>>());
  return lists;
}

bool is_possible(const PromptTokens& prompt) {
  const auto known = [&](std::span<const int32_t> tokens) {
    return std::ranges::all_of(tokens, [&](int32_t token) { return token >= 0 && token < prompt.vocabulary; });
  };
  const int32_t marks[] = {prompt.emb, prompt.eos};
  return known(marks) && known(prompt.category_instruction) && known(prompt.category_guidance) &&
         known(prompt.hashtag_instruction.values) && known(prompt.hashtag_guidance.values) &&
         prompt.hashtag_instruction.size() == prompt.hashtag_guidance.size();
}

ShardSet parse_shard_set(const Json& json, const fs::path& path) {
  if (!json.is_object() || json.value("format", "") != set_format)
    fail(ErrorKind::data, "{}: format is not \"{}\"; run prepare again with this program", path.string(), set_format);
  ShardSet set;
  json.at("set").get_to(set.id);
  json.at("tokenizer").get_to(set.tokenizer_digest);
  json.at("preset").get_to(set.preset);
  json.at("config").get_to(set.config);
  json.at("inputs").get_to(set.inputs);
  json.at("category_names").get_to(set.category_names);
  json.at("notes").get_to(set.notes);
  json.at("train_pairs").get_to(set.train_pairs);
  json.at("test_pairs").get_to(set.test_pairs);
  json.at("notes_per_shard").get_to(set.notes_per_shard);
  json.at("pairs_per_shard").get_to(set.pairs_per_shard);
  const Json& prompt = json.at("prompt");
  prompt.at("emb").get_to(set.prompt.emb);
  prompt.at("eos").get_to(set.prompt.eos);
  prompt.at("vocabulary").get_to(set.prompt.vocabulary);
  prompt.at("category_instruction").get_to(set.prompt.category_instruction);
  prompt.at("category_guidance").get_to(set.prompt.category_guidance);
  set.prompt.hashtag_instruction = to_ragged(prompt.at("hashtag_instruction"));
  set.prompt.hashtag_guidance = to_ragged(prompt.at("hashtag_guidance"));
  // Rows are int32; no log has 2^48 pairs, and sums of such numbers do not overflow.
  const int64_t most_notes = std::numeric_limits<int32_t>::max(), most_pairs = int64_t{1} << 48;
  const auto possible = [](int64_t n, int64_t least, int64_t most) { return n >= least && n <= most; };
  if (!possible(set.notes, 1, most_notes) || !possible(set.notes_per_shard, 1, most_notes) ||
      !possible(set.pairs_per_shard, 1, most_pairs) || !possible(set.train_pairs, 0, most_pairs) ||
      !possible(set.test_pairs, 0, most_pairs))
    fail(ErrorKind::data, "{}: impossible counts; run prepare again", path.string());
  if (!is_possible(set.prompt))
    fail(ErrorKind::data, "{}: the prompt has tokens that are not in the vocabulary; run prepare again", path.string());
  return set;
}

void expect_text(const Hdf5File& file, const char* attribute, const std::string& wanted, const char* what) {
  const std::string found = file.text(attribute);
  if (found != wanted)
    fail(ErrorKind::data, "{}: {} (\"{}\" here, \"{}\" in {}); run prepare again", file.path().string(), what, found,
         wanted, shard_set_file_name);
}

void check_attributes(const Hdf5File& file, const ShardSet& set, const char* format) {
  if (const std::string found = file.text("format"); found != format)
    fail(ErrorKind::data, "{}: format is \"{}\", not \"{}\"; run prepare again with this program", file.path().string(),
         found, format);
  expect_text(file, "tokenizer", set.tokenizer_digest, "made with another tokenizer");
  expect_text(file, "preset", set.preset, "made with another prompt preset");
  expect_text(file, "set", set.id, "made by another run of prepare");
}

void expect_length(const Hdf5File& file, const std::string& array, int64_t wanted) {
  if (const int64_t found = file.length(array); found != wanted)
    fail(ErrorKind::data, "{}: array \"{}\" has {} elements, not {}; run prepare again", file.path().string(), array,
         found, wanted);
}

// Reads n + 1 ascending offsets from 0 to `end`.
std::vector<uint64_t> read_offsets(const Hdf5File& file, const std::string& array, int64_t n, int64_t end) {
  expect_length(file, array, n + 1);
  std::vector<uint64_t> offsets = file.read<uint64_t>(array);
  const auto bad = std::is_sorted_until(offsets.begin(), offsets.end());
  if (bad != offsets.end())
    fail(ErrorKind::data, "{}: array \"{}\" descends at element {}; run prepare again", file.path().string(), array,
         bad - offsets.begin());
  if (offsets.front() != 0 || offsets.back() != static_cast<uint64_t>(end))
    fail(ErrorKind::data, "{}: array \"{}\" goes from {} to {}, not from 0 to {}; run prepare again",
         file.path().string(), array, offsets.front(), offsets.back(), end);
  return offsets;
}

// Appends offsets that count from `base` instead of from 0.
void append_offsets(std::vector<uint64_t>& all, std::span<const uint64_t> offsets, uint64_t base) {
  for (const uint64_t offset : offsets.subspan(1)) all.push_back(base + offset);
}

// Appends [lowest, end) checked values of an array to `all`.
void append_values(const Hdf5File& file, const std::string& array, int64_t count, int64_t lowest, int64_t end,
                   std::vector<int32_t>& all) {
  expect_length(file, array, count);
  const size_t begin = all.size();
  all.resize(begin + count);
  file.read(array, 0, std::span(all).subspan(begin));
  for (size_t i = begin; i < all.size(); ++i)
    if (all[i] < lowest || all[i] >= end)
      fail(ErrorKind::data, "{}: array \"{}\" holds {} at element {}, outside {} … {}; run prepare again",
           file.path().string(), array, all[i], i - begin, lowest, end - 1);
}

void append_ragged(const Hdf5File& file, const std::string& name, int64_t lists, int32_t vocabulary, Ragged& all) {
  const int64_t count = file.length(name + "/values");
  append_offsets(all.offsets, read_offsets(file, name + "/offsets", lists, count), all.values.size());
  append_values(file, name + "/values", count, 0, vocabulary, all.values);
}

void append_texts(const Hdf5File& file, const std::string& name, int64_t n, std::vector<std::string>& all) {
  const auto bytes = file.read<uint8_t>(name + "/values");
  const auto offsets = read_offsets(file, name + "/offsets", n, static_cast<int64_t>(bytes.size()));
  for (int64_t i = 0; i < n; ++i) all.emplace_back(bytes.begin() + offsets[i], bytes.begin() + offsets[i + 1]);
}

void append_notes(const Hdf5File& file, const ShardSet& set, int64_t n, NoteTable& notes) {
  const int32_t vocabulary = set.prompt.vocabulary;
  for (const auto& [name, texts] : text_arrays) append_texts(file, name, n, notes.*texts);
  for (const auto& [name, lists] : note_lists) append_ragged(file, name, n, vocabulary, notes.*lists);
  const int64_t hashtags = file.length("hashtag_inner/offsets") - 1;
  append_offsets(notes.hashtag_begin, read_offsets(file, "hashtag_begin", n, hashtags), notes.hashtag_begin.back());
  for (const auto& [name, lists] : hashtag_lists) append_ragged(file, name, hashtags, vocabulary, notes.*lists);
  append_values(file, "category_id", n, -1, static_cast<int64_t>(set.category_names.size()), notes.category_id);
  append_values(file, "clicks", n, 0, int64_t{1} << 31, notes.clicks);
  expect_length(file, "in_pool", n);
  const auto in_pool = file.read<uint8_t>("in_pool");
  notes.in_pool.insert(notes.in_pool.end(), in_pool.begin(), in_pool.end());
}

// How many of `total` things the shard holds.
int64_t share(int64_t total, int64_t per_shard, int64_t shard) {
  return std::clamp<int64_t>(total - shard * per_shard, 0, per_shard);
}

// Makes room for all shards at once, so that no vector is copied while it grows; of counts that the files agree with.
void reserve_notes(const fs::path& folder, const ShardSet& set, NoteTable& notes) {
  std::map<std::string, int64_t> lengths;
  for (int64_t shard = 0; shard < set.note_shards(); ++shard) {
    const Hdf5File file(folder / notes_shard_name(shard));
    check_attributes(file, set, notes_format);
    expect_length(file, "clicks", share(set.notes, set.notes_per_shard, shard));
    const auto add = [&](const std::string& array) { lengths[array] += file.length(array); };
    const auto add_lists = [&](const std::string& name) { add(name + "/offsets"), add(name + "/values"); };
    for (const auto& [name, lists] : note_lists) add_lists(name);
    for (const auto& [name, lists] : hashtag_lists) add_lists(name);
  }
  const auto n = static_cast<size_t>(set.notes);
  for (const auto& [name, texts] : text_arrays) (notes.*texts).reserve(n);
  notes.hashtag_begin.reserve(n + 1);
  notes.category_id.reserve(n);
  notes.clicks.reserve(n);
  notes.in_pool.reserve(n);
  const auto reserve_lists = [&](const std::string& name, Ragged& lists) {
    lists.offsets.reserve(lengths[name + "/offsets"]);
    lists.values.reserve(lengths[name + "/values"]);
  };
  for (const auto& [name, lists] : note_lists) reserve_lists(name, notes.*lists);
  for (const auto& [name, lists] : hashtag_lists) reserve_lists(name, notes.*lists);
}

void append_pairs(const Hdf5File& file, const std::string& group, int64_t count, int64_t notes,
                  std::vector<Pair>& pairs) {
  std::vector<int32_t> queries, targets;
  append_values(file, group + "/query", count, 0, notes, queries);
  append_values(file, group + "/target", count, 0, notes, targets);
  expect_length(file, group + "/score", count);
  const auto scores = file.read<float>(group + "/score");
  for (int64_t i = 0; i < count; ++i) pairs.push_back({queries[i], targets[i], scores[i]});
}

void reserve_pairs(const fs::path& folder, const ShardSet& set, PairTable& pairs) {
  for (int64_t shard = 0; shard < set.pair_shards(); ++shard) {
    const Hdf5File file(folder / pairs_shard_name(shard));
    check_attributes(file, set, pairs_format);
    expect_length(file, "train/query", share(set.train_pairs, set.pairs_per_shard, shard));
    expect_length(file, "test/query", share(set.test_pairs, set.pairs_per_shard, shard));
  }
  pairs.train.reserve(set.train_pairs);
  pairs.test.reserve(set.test_pairs);
}

void append_pairs_shard(const fs::path& folder, const ShardSet& set, int64_t shard, PairTable& pairs) {
  const Hdf5File file(folder / pairs_shard_name(shard));
  append_pairs(file, "train", share(set.train_pairs, set.pairs_per_shard, shard), set.notes, pairs.train);
  append_pairs(file, "test", share(set.test_pairs, set.pairs_per_shard, shard), set.notes, pairs.test);
}

[[noreturn]] void fail_of_tokenizer(const fs::path& folder) {
  fail(ErrorKind::data, "{}: holds another tokenizer than the one that made these shards; run prepare again",
       folder.string());
}

}  // namespace

int64_t ShardSet::pair_shards() const {
  const int64_t most = std::max<int64_t>({train_pairs, test_pairs, 1});
  return (most + pairs_per_shard - 1) / pairs_per_shard;
}

Tokenizer shards_tokenizer(const std::filesystem::path& folder, const NoteTable& notes) {
  Tokenizer tokenizer = Tokenizer::load_stored(folder);
  if (tokenizer.digest() != notes.tokenizer_digest) fail_of_tokenizer(folder);
  return tokenizer;
}

std::string notes_shard_name(int64_t shard) { return fmt::format("notes-{:05}.h5", shard); }
std::string pairs_shard_name(int64_t shard) { return fmt::format("pairs-{:05}.h5", shard); }

void write_notes_shard(const fs::path& folder, const ShardSet& set, int64_t shard, const NoteTable& notes) {
  Hdf5Writer file;
  write_attributes(file, set, notes_format);
  file.write_text("notes", std::to_string(notes.size()));
  file.write_text("first_row", std::to_string(shard * set.notes_per_shard));
  for (const auto& [name, texts] : text_arrays) write_texts(file, name, notes.*texts);
  const auto write_ragged = [&](const std::string& name, const Ragged& lists) {
    file.write(name + "/offsets", lists.offsets);
    file.write(name + "/values", lists.values);
  };
  for (const auto& [name, lists] : note_lists) write_ragged(name, notes.*lists);
  for (const auto& [name, lists] : hashtag_lists) write_ragged(name, notes.*lists);
  file.write("hashtag_begin", notes.hashtag_begin);
  file.write("category_id", notes.category_id);
  file.write("clicks", notes.clicks);
  file.write("in_pool", notes.in_pool);
  file.save(folder / notes_shard_name(shard));
}

void write_pairs_shard(const fs::path& folder, const ShardSet& set, int64_t shard, std::span<const Pair> train,
                       std::span<const Pair> test) {
  Hdf5Writer file;
  write_attributes(file, set, pairs_format);
  write_pairs(file, "train", train);
  write_pairs(file, "test", test);
  file.save(folder / pairs_shard_name(shard));
}

void finish_shards(const fs::path& folder, const ShardSet& set) {
  const Json json = {{"format", set_format},
                     {"set", set.id},
                     {"tokenizer", set.tokenizer_digest},
                     {"preset", set.preset},
                     {"config", set.config},
                     {"inputs", set.inputs},
                     {"category_names", set.category_names},
                     {"notes", set.notes},
                     {"train_pairs", set.train_pairs},
                     {"test_pairs", set.test_pairs},
                     {"notes_per_shard", set.notes_per_shard},
                     {"pairs_per_shard", set.pairs_per_shard},
                     {"prompt",
                      {{"emb", set.prompt.emb},
                       {"eos", set.prompt.eos},
                       {"vocabulary", set.prompt.vocabulary},
                       {"category_instruction", set.prompt.category_instruction},
                       {"category_guidance", set.prompt.category_guidance},
                       {"hashtag_instruction", to_json(set.prompt.hashtag_instruction)},
                       {"hashtag_guidance", to_json(set.prompt.hashtag_guidance)}}}};
  write_file(folder / shard_set_file_name, json.dump(1) + "\n");
}

bool has_shards(const fs::path& folder) { return fs::exists(folder / shard_set_file_name); }

ShardSet read_shard_set(const fs::path& folder) {
  const fs::path path = folder / shard_set_file_name;
  if (!has_shards(folder))
    fail(ErrorKind::io, "{}: no complete set of shards is in this folder; run prepare", path.string());
  try {
    return parse_shard_set(Json::parse(read_file(path)), path);
  } catch (const Json::exception& error) {
    fail(ErrorKind::data, "{}: damaged: {}; run prepare again", path.string(), error.what());
  }
}

Shards read_shards(const fs::path& folder) {
  const ShardSet set = read_shard_set(folder);
  Shards shards;
  shards.notes.prompt = set.prompt;
  shards.notes.tokenizer_digest = set.tokenizer_digest;
  shards.notes.shards = set.id;
  shards.notes.category_names = set.category_names;
  reserve_notes(folder, set, shards.notes);
  for (int64_t shard = 0; shard < set.note_shards(); ++shard)
    append_notes(Hdf5File(folder / notes_shard_name(shard)), set, share(set.notes, set.notes_per_shard, shard),
                 shards.notes);
  reserve_pairs(folder, set, shards.pairs);
  for (int64_t shard = 0; shard < set.pair_shards(); ++shard) append_pairs_shard(folder, set, shard, shards.pairs);
  return shards;
}

void check_shards(const fs::path& folder) {
  const ShardSet set = read_shard_set(folder);
  for (int64_t shard = 0; shard < set.note_shards(); ++shard)
    check_attributes(Hdf5File(folder / notes_shard_name(shard)), set, notes_format);
  for (int64_t shard = 0; shard < set.pair_shards(); ++shard)
    check_attributes(Hdf5File(folder / pairs_shard_name(shard)), set, pairs_format);
  if (Tokenizer::load_stored(folder).digest() != set.tokenizer_digest) fail_of_tokenizer(folder);
}

}  // namespace notellm

#include "training/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/files.h"
#include "training/checkpoint_folder.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// 1: one file of moments, named optimizer-00000.safetensors, and no index: read as it is.
constexpr int oldest_format = 1, format_version = 2;
constexpr const char* manifest_checksum = "manifest_xxh3_128";

std::string compact(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Whether it is what write_manifest wrote.
bool is_intact(Json json) {
  if (!json.contains(manifest_checksum)) return false;
  const Json expected = json[manifest_checksum];
  json.erase(manifest_checksum);
  return expected == checksum(compact(json));
}

}  // namespace

bool has_moments(const Manifest& manifest) {
  return std::ranges::any_of(manifest.files,
                             [](const FileRecord& file) { return file.name.starts_with("optimizer-"); });
}

void write_manifest(const fs::path& checkpoint, const Manifest& m) {
  Json files = Json::object();
  std::vector<FileRecord> records = m.files;
  std::ranges::sort(records, {}, &FileRecord::name);
  for (const FileRecord& file : records) files[file.name] = {{"bytes", file.bytes}, {"xxh3_128", file.checksum}};
  Json json = {{"format", format_version},
               {"step", m.position.step},
               {"updates", m.position.updates},
               {"skipped", m.position.skipped},
               {"vocabulary", m.vocabulary},
               {"tokens_in_use", m.tokens_in_use},
               {"tokenizer_digest", m.tokenizer_digest},
               {"shards", m.trained_on},
               {"files", files}};
  json[manifest_checksum] = checksum(compact(json));
  write_file(checkpoint / manifest_name, json.dump(2) + "\n");
}

Manifest read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / manifest_name;
  if (!fs::exists(path))
    fail(ErrorKind::checkpoint, "{} is missing: not a complete checkpoint; {}", path.string(),
         checkpoint_before(checkpoint));
  // The library copies and prints by recursion: what is nested deeper than a manifest is left out, and found missing.
  const auto bounded = [](int depth, Json::parse_event_t, const Json&) { return depth < 8; };
  const Json json = Json::parse(read_file(path), bounded, false);
  if (!json.is_object() || !json.contains("format"))
    fail(ErrorKind::checkpoint, "{} is damaged; {}", path.string(), checkpoint_before(checkpoint));
  const Json& format = json["format"];
  if (!format.is_number_integer() || format < oldest_format || format > format_version)
    fail(ErrorKind::checkpoint, "{} is of format {}, this program reads formats {} to {}; {}", path.string(),
         compact(format), oldest_format, format_version, checkpoint_before(checkpoint));
  if (!is_intact(json)) fail(ErrorKind::checkpoint, "{} is damaged; {}", path.string(), checkpoint_before(checkpoint));
  Manifest m;
  m.position = {json.at("step"), json.at("updates"), json.at("skipped")};
  m.vocabulary = json.at("vocabulary");
  m.tokens_in_use = json.at("tokens_in_use");
  m.tokenizer_digest = json.at("tokenizer_digest");
  m.trained_on = json.value("shards", "");
  for (const auto& [name, file] : json.at("files").items())
    m.files.push_back({name, file.at("bytes"), file.at("xxh3_128")});
  return m;
}

}  // namespace notellm

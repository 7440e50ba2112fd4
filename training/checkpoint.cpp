#include "training/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/files.h"
#include "runtime/log.h"
#include "runtime/safetensors.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int format_version = 1;
constexpr const char* manifest_name = "manifest.json";
constexpr const char* model_name = "model-00001-of-00001.safetensors";
constexpr const char* note_head_name = "note_head.safetensors";
constexpr const char* optimizer_name = "optimizer-00000.safetensors";
constexpr const char* step_prefix = "step-";
constexpr const char* latest_name = "latest";
constexpr const char* partial_suffix = ".partial";  // of a folder that is being written,
constexpr const char* removed_suffix = ".removed";  // … removed
constexpr const char* manifest_checksum = "manifest_xxh3_128";

bool in_note_head(const Parameter& p) { return p.name.starts_with("note_head."); }

// Complete checkpoints of a run, oldest first.
std::vector<fs::path> checkpoints_of(const fs::path& folder) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(step_prefix) && entry.path().extension().empty() && fs::exists(entry.path() / manifest_name))
      found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string advice(const fs::path& checkpoint) {
  const std::vector<fs::path> all = checkpoints_of(checkpoint.parent_path());
  const auto place = std::lower_bound(all.begin(), all.end(), checkpoint);
  return place == all.begin() ? "there is no checkpoint before it"
                              : fmt::format("the one before it is {}: --resume {}", std::prev(place)->string(),
                                            std::prev(place)->string());
}

std::string hugging_face_config(const ModelConfig& c, int64_t vocabulary, const PromptTokens& prompt) {
  Json json = {{"architectures", {"LlamaForCausalLM"}},
               {"model_type", "llama"},
               {"hidden_size", c.dim},
               {"num_hidden_layers", c.layers},
               {"num_attention_heads", c.heads},
               {"num_key_value_heads", c.kv_heads},
               {"head_dim", c.head_dim},
               {"intermediate_size", c.ffn},
               {"vocab_size", vocabulary},
               {"max_position_embeddings", c.context},
               {"rms_norm_eps", c.norm_eps},
               {"rope_theta", c.rope_theta},
               {"rope_parameters", {{"rope_theta", c.rope_theta}, {"rope_type", "default"}}},
               {"hidden_act", "silu"},
               {"attention_bias", false},
               {"mlp_bias", false},
               {"tie_word_embeddings", c.tied_head},
               {"bos_token_id", prompt.category_instruction.empty() ? 1 : prompt.category_instruction.front()},
               {"eos_token_id", prompt.eos},
               {"dtype", "float32"}};
  return json.dump(2) + "\n";
}

std::vector<NamedTensor> named(const ParameterLayout& layout, Tensor flat, const std::string& prefix, bool model,
                               bool head) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : layout.all())
    if (in_note_head(p) ? head : model) tensors.push_back({prefix + p.name, p.view(flat)});
  return tensors;
}

void write_files(const fs::path& folder, const RunConfig& config, const ParameterLayout& layout,
                 const PromptTokens& prompt, const fs::path& tokenizer, const Optimizer& optimizer) {
  const Tensor weights = optimizer.weights();
  const Device device = optimizer.device();
  write_safetensors(folder / model_name, named(layout, weights, "", true, false), {{"format", "pt"}}, device);
  write_safetensors(folder / note_head_name, named(layout, weights, "", false, true), {}, device);
  std::vector<NamedTensor> moments = named(layout, optimizer.first_moment(), "first_moment.", true, true);
  const auto second = named(layout, optimizer.second_moment(), "second_moment.", true, true);
  moments.insert(moments.end(), second.begin(), second.end());
  write_safetensors(folder / optimizer_name, moments, {}, device);
  write_file(folder / "config.json", hugging_face_config(config.model, layout.vocabulary(), prompt));
  write_file(folder / "config.yaml", print_run_config(config));
  write_file(folder / "tokenizer.model", read_file(tokenizer));
}

void write_manifest(const fs::path& folder, const ParameterLayout& layout, const NoteTable& notes,
                    const TrainingPosition& position) {
  Json files = Json::object();
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths)
    files[path.filename().string()] = {{"bytes", fs::file_size(path)}, {"xxh3_128", checksum_file(path)}};
  Json manifest = {{"format", format_version},
                   {"step", position.step},
                   {"updates", position.updates},
                   {"skipped", position.skipped},
                   {"vocabulary", layout.vocabulary()},
                   {"tokens_in_use", notes.prompt.vocabulary},
                   {"tokenizer_digest", notes.tokenizer_digest},
                   {"files", files}};
  manifest[manifest_checksum] = checksum(manifest.dump());
  write_file(folder / manifest_name, manifest.dump(2) + "\n");
}

// Whether the manifest is what write_manifest wrote.
bool is_intact(Json manifest) {
  if (!manifest.contains(manifest_checksum)) return false;
  const Json expected = manifest[manifest_checksum];
  manifest.erase(manifest_checksum);
  return expected == checksum(manifest.dump(-1, ' ', false, Json::error_handler_t::replace));
}

Json read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / manifest_name;
  if (!fs::exists(path))
    fail(ErrorKind::checkpoint, "{} is missing: not a complete checkpoint; {}", path.string(), advice(checkpoint));
  const Json manifest = Json::parse(read_file(path), nullptr, false);
  if (!manifest.is_object() || !manifest.contains("format"))
    fail(ErrorKind::checkpoint, "{} is damaged; {}", path.string(), advice(checkpoint));
  if (manifest["format"] != format_version)
    fail(ErrorKind::checkpoint, "{} is of format {}, this program reads format {}; {}", path.string(),
         manifest["format"].dump(-1, ' ', false, Json::error_handler_t::replace), format_version, advice(checkpoint));
  if (!is_intact(manifest)) fail(ErrorKind::checkpoint, "{} is damaged; {}", path.string(), advice(checkpoint));
  return manifest;
}

// A folder never stands half-removed under a checkpoint's name.
void remove_checkpoint(const fs::path& checkpoint) {
  const fs::path removed = checkpoint.string() + removed_suffix;
  fs::rename(checkpoint, removed);
  fs::remove_all(removed);
}

// What a killed run left half-written or half-removed.
void remove_leftovers(const fs::path& folder) {
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == partial_suffix || entry.path().extension() == removed_suffix)
      left.push_back(entry.path());
  for (const fs::path& path : left) fs::remove_all(path);
}

void point_latest_at(const fs::path& checkpoint) {
  write_file(checkpoint.parent_path() / latest_name, checkpoint.filename().string() + "\n");
}

// Makes room for a step that is saved again, by a run that went on from an older checkpoint. `latest` never names what
// is not there.
void make_room(const fs::path& checkpoint) {
  const std::vector<fs::path> all = checkpoints_of(checkpoint.parent_path());
  const auto place = std::lower_bound(all.begin(), all.end(), checkpoint);
  if (place == all.begin())
    fs::remove(checkpoint.parent_path() / latest_name);
  else
    point_latest_at(*std::prev(place));
  remove_checkpoint(checkpoint);
}

// A whole tensor of the file, checked to be that of `p`.
Tensor whole_tensor(const SafetensorsFile& file, const std::string& name, const Parameter& p, const fs::path& path) {
  const Tensor t = file.at(name);
  if (t.dtype != DType::f32 || t.rows() != p.all_rows || t.cols() != std::max<int64_t>(1, p.all_cols))
    fail(ErrorKind::checkpoint, "{}: tensor {} is {}, the model wants {}", path.string(), name, describe(t),
         p.all_cols ? fmt::format("f32 [{}, {}]", p.all_rows, p.all_cols) : fmt::format("f32 [{}]", p.all_rows));
  return t;
}

// Elements [first, first + count) of the part p of a whole tensor, to `to`.
void copy_run(Stream& stream, const Parameter& p, Tensor whole, int64_t first, int64_t count, Tensor to) {
  const Tensor flat = whole.reshape({whole.size()});
  for_row_runs(p, first, count, [&](int64_t from, int64_t at, int64_t elements) {
    copy(stream, flat.slice(from, from + elements), to.slice(at, at + elements));
  });
}

}  // namespace

void save_checkpoint(const RunConfig& config, const ParameterLayout& layout, const NoteTable& notes,
                     const fs::path& tokenizer, const TrainingPosition& position, const Optimizer& optimizer) {
  const fs::path folder = fs::path(config.train.run) / "checkpoints";
  const fs::path final = folder / fmt::format("{}{:08}", step_prefix, position.step),
                 partial = final.string() + partial_suffix;
  fs::create_directories(folder);
  remove_leftovers(folder);
  fs::create_directory(partial);
  try {
    write_files(partial, config, layout, notes.prompt, tokenizer, optimizer);
    write_manifest(partial, layout, notes, position);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
  sync_directory(partial);
  if (fs::exists(final)) make_room(final);
  fs::rename(partial, final);
  sync_directory(folder);
  point_latest_at(final);
  std::vector<fs::path> all = checkpoints_of(folder);
  for (size_t i = 0; i + config.train.keep_checkpoints < all.size(); ++i)
    if (all[i] != final) remove_checkpoint(all[i]);
}

std::optional<fs::path> latest_checkpoint(const fs::path& run) {
  const fs::path pointer = run / "checkpoints" / latest_name;
  if (!fs::exists(pointer)) return std::nullopt;
  std::string name = read_file(pointer);
  name.erase(name.find_last_not_of(" \n") + 1);
  const fs::path checkpoint = run / "checkpoints" / name;
  if (!name.empty() && fs::exists(checkpoint / manifest_name)) return checkpoint;
  const std::vector<fs::path> all = checkpoints_of(run / "checkpoints");
  fail(ErrorKind::checkpoint, "{} names '{}', which is not a complete checkpoint; {}", pointer.string(), name,
       all.empty() ? "there is none" : fmt::format("the newest one is {0}: --resume {0}", all.back().string()));
}

fs::path find_checkpoint(const fs::path& path) {
  if (fs::exists(path / manifest_name)) return path.has_filename() ? path : path.parent_path();
  if (const auto latest = latest_checkpoint(path)) return *latest;
  fail(ErrorKind::io, "{} is neither a checkpoint nor a run with checkpoints; 'notellm train' writes them",
       path.string());
}

CheckpointInfo verify_checkpoint(const fs::path& checkpoint) {
  const Json manifest = read_manifest(checkpoint);
  for (const auto& [name, file] : manifest.at("files").items()) {
    const fs::path path = checkpoint / name;
    if (!fs::exists(path)) fail(ErrorKind::checkpoint, "{} is missing; {}", path.string(), advice(checkpoint));
    if (fs::file_size(path) != file.at("bytes") || checksum_file(path) != file.at("xxh3_128"))
      fail(ErrorKind::checkpoint, "{} is damaged: size or checksum differs from the manifest; {}", path.string(),
           advice(checkpoint));
  }
  CheckpointInfo info;
  info.path = checkpoint;
  info.position = {manifest.at("step"), manifest.at("updates"), manifest.at("skipped")};
  info.vocabulary = manifest.at("vocabulary");
  info.tokens_in_use = manifest.at("tokens_in_use");
  info.tokenizer_digest = manifest.at("tokenizer_digest");
  info.config = read_run_config((checkpoint / "config.yaml").string(), {});
  return info;
}

void load_weights(const fs::path& folder, const ParameterLayout& layout, bool with_note_head, Tensor flat,
                  Device device) {
  Stream stream(device);
  const auto load = [&](const fs::path& path, bool note_head) {
    const SafetensorsFile file(path);
    for (const Parameter& p : layout.all())
      if (in_note_head(p) == note_head)
        copy_run(stream, p, whole_tensor(file, p.name, p, path), 0, p.size(),
                 flat.slice(p.offset, p.offset + p.size()));
    stream.synchronize();
  };
  load(fs::exists(folder / model_name) ? folder / model_name : folder / "model.safetensors", false);
  if (with_note_head) load(folder / note_head_name, true);
}

void load_state(const fs::path& checkpoint, const ParameterLayout& layout, const ShardMap& shards,
                Optimizer& optimizer) {
  const SafetensorsFile model(checkpoint / model_name), head(checkpoint / note_head_name),
      moments(checkpoint / optimizer_name);
  Stream stream(optimizer.device());
  shards.for_runs(layout, [&](const ShardMap::Run& run) {
    const Parameter& p = run.parameter;
    const auto load = [&](const SafetensorsFile& file, const char* name, const std::string& prefix, Tensor to) {
      copy_run(stream, p, whole_tensor(file, prefix + p.name, p, checkpoint / name), run.first, run.count,
               to.slice(run.at, run.at + run.count));
    };
    in_note_head(p) ? load(head, note_head_name, "", optimizer.weights())
                    : load(model, model_name, "", optimizer.weights());
    load(moments, optimizer_name, "first_moment.", optimizer.first_moment());
    load(moments, optimizer_name, "second_moment.", optimizer.second_moment());
  });
  stream.synchronize();
}

}  // namespace notellm
